"""No-op jobs by us and by our peers, each in an environment of its own: ``python -m tests.benchmarks.peers``."""
