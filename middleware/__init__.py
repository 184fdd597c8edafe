"""Dramatiq middleware, one idea a file, for any Dramatiq project.

Never imports ``worker``; what a middleware needs is handed to its constructor.
"""

#: Lets ``worker`` tell this package from a user's own ``middleware`` that shadows it.
__distribution__ = "dramaturg"

# After the line above, which tells a user's package from ours even where these cannot be imported.
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
