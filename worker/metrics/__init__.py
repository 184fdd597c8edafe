"""What Prometheus gets to see: what processes have counted, and how things stand, from Redis and Postgres.

``worker console`` serves it at ``/metrics``; ``worker metrics`` serves it alone, or prints it once. Whoever asks gets
what was found out within the last seconds, so it costs the same however many ask. It needs the extra ``metrics``, which
is part of ``console``. ``alerts.yml`` beside this file has alert rules; each has a section in RUNBOOK.md.
"""
