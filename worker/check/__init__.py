"""Tells before a deploy what would break a promise: ``worker check``.

Changes nothing anywhere, and runs no job. Each module looks at one thing; where Postgres or Redis is asked, asking
(``check_...``, ``read_...``) and judging what was said (``judge_...``) are functions of their own.
"""

from worker.check.deployment import check_deployment
from worker.check.findings import Finding, Status, worst_first

__all__ = ["Finding", "Status", "check_deployment", "worst_first"]
