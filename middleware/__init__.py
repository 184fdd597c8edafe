"""Dramatiq middleware, one idea a file, for any Dramatiq project.

Never imports ``worker``; what a middleware needs is handed to its constructor.
"""

#: Lets ``worker`` tell this package from a user's own ``middleware`` that shadows it.
__distribution__ = "dramaturg"

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from middleware.age_limit import AgeLimit
    from middleware.classification import Classifier
    from middleware.close_sessions import CloseSessions
    from middleware.crash_guard import CrashGuard
    from middleware.dead_letters import DeadLetters
    from middleware.event_loop import AsyncIO
    from middleware.failed_skips import FailedSkips
    from middleware.graceful_shutdown import GracefulShutdown
    from middleware.known_queues import KnownQueues
    from middleware.log_context import LogContext
    from middleware.lossless_broker import LosslessBroker
    from middleware.option_checks import OptionChecks
    from middleware.redaction import Redactor
    from middleware.safe_follow_ups import SafeCallbacks, SafePipelines
    from middleware.safe_groups import GroupCounts, SafeGroupCallbacks
    from middleware.safe_retries import SafeRetries
    from middleware.spool_drainer import SpoolDrainer
    from middleware.statement_deadline import StatementDeadline
    from middleware.supervision import Supervision
    from middleware.tenant_context import TenantContext
    from middleware.time_limit import TimeLimit

_MODULES = {
    "AgeLimit": "middleware.age_limit",
    "AsyncIO": "middleware.event_loop",
    "Classifier": "middleware.classification",
    "CloseSessions": "middleware.close_sessions",
    "CrashGuard": "middleware.crash_guard",
    "DeadLetters": "middleware.dead_letters",
    "FailedSkips": "middleware.failed_skips",
    "GracefulShutdown": "middleware.graceful_shutdown",
    "GroupCounts": "middleware.safe_groups",
    "KnownQueues": "middleware.known_queues",
    "LogContext": "middleware.log_context",
    "LosslessBroker": "middleware.lossless_broker",
    "OptionChecks": "middleware.option_checks",
    "Redactor": "middleware.redaction",
    "SafeCallbacks": "middleware.safe_follow_ups",
    "SafeGroupCallbacks": "middleware.safe_groups",
    "SafePipelines": "middleware.safe_follow_ups",
    "SafeRetries": "middleware.safe_retries",
    "SpoolDrainer": "middleware.spool_drainer",
    "StatementDeadline": "middleware.statement_deadline",
    "Supervision": "middleware.supervision",
    "TenantContext": "middleware.tenant_context",
    "TimeLimit": "middleware.time_limit",
}


def __getattr__(name: str) -> Any:
    # When it is asked for: who needs one of them need not hold all.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


__all__ = [
    "AgeLimit",
    "AsyncIO",
    "Classifier",
    "CloseSessions",
    "CrashGuard",
    "DeadLetters",
    "FailedSkips",
    "GracefulShutdown",
    "GroupCounts",
    "KnownQueues",
    "LogContext",
    "LosslessBroker",
    "OptionChecks",
    "Redactor",
    "SafeCallbacks",
    "SafeGroupCallbacks",
    "SafePipelines",
    "SafeRetries",
    "SpoolDrainer",
    "StatementDeadline",
    "Supervision",
    "TenantContext",
    "TimeLimit",
]
