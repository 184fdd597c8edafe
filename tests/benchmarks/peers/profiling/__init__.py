"""Where our own time goes: ``python -m tests.benchmarks.peers --profile``."""
