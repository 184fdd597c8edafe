"""Dramatiq middleware, one idea a file, for any Dramatiq project.

Never imports ``worker``; what a middleware needs is handed to its constructor.
"""

#: Lets ``worker`` tell this package from a user's own ``middleware`` that shadows it.
__distribution__ = "dramaturg"

# After the line above, which tells a user's package from ours even where these cannot be imported.
from middleware.age_limit import AgeLimit
from middleware.classification import Classifier
from middleware.close_sessions import CloseSessions
from middleware.dead_letters import DeadLetters
from middleware.known_queues import KnownQueues
from middleware.redaction import Redactor
from middleware.statement_deadline import StatementDeadline
from middleware.tenant_context import TenantContext

__all__ = [
    "AgeLimit",
    "Classifier",
    "CloseSessions",
    "DeadLetters",
    "KnownQueues",
    "Redactor",
    "StatementDeadline",
    "TenantContext",
]
