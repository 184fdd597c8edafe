"""What an operator sees of queues and does with them, asking Redis alone: ``worker queues``, as functions.

They take a client that decodes nothing and the namespace, and need no broker. Every one of them raises
:class:`dramatiq.errors.ConnectionClosed` for any error of Redis.
"""

from worker.queue_admin.audit import Audit, log_event
from worker.queue_admin.lanes import merge
from worker.queue_admin.pauses import Pause, pause, pauses, resume
from worker.queue_admin.removal import Found, count_messages, purge, remove_messages
from worker.queue_admin.shares import (
    EVERYBODY,
    NOBODY,
    ByTenant,
    Share,
    TenantState,
    by_tenant,
    forget_shares,
    share,
    shares,
    unshare,
)
from worker.queue_admin.spooled import sealed_in_spool
from worker.queue_admin.states import QueueState, list_queues

__all__ = [
    "EVERYBODY",
    "NOBODY",
    "Audit",
    "ByTenant",
    "Found",
    "Pause",
    "QueueState",
    "Share",
    "TenantState",
    "by_tenant",
    "count_messages",
    "forget_shares",
    "list_queues",
    "log_event",
    "merge",
    "pause",
    "pauses",
    "purge",
    "remove_messages",
    "resume",
    "sealed_in_spool",
    "share",
    "shares",
    "unshare",
]
