"""Which message the code at hand works on, for the lines that it logs.

Seen wherever the tenant is, see :mod:`db.tenancy`: in coroutines, ``asyncio.to_thread`` and whatever
``contextvars.copy_context().run`` carries.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

from dramatiq import Broker, MessageProxy
from dramatiq.common import q_name
from dramatiq.middleware import Middleware
from dramatiq.worker import ConsumerThread, WorkerThread

from db.errors import InvalidTenant
from db.tenancy import current_tenancy, parse_uuid
from middleware.dramatiq_internals import Handle, surround_messages
from middleware.tenant_context import correlation_of
from middleware.text import clean, cut

#: Characters of a name on a line.
NAME_LIMIT: Final = 255


class Job:
    """What lines say of a message that is worked on, as it was when this execution began: retries change it."""

    __slots__ = ("_message", "_options", "attempt")

    def __init__(self, message: MessageProxy) -> None:
        self._message = message._message
        self._options = message.options
        retries = self._options.get("retries", 0)
        self.attempt = retries + 1 if isinstance(retries, int) and 0 <= retries < 2**31 else 1

    def fields(self) -> dict[str, Any]:
        """Return the fields of a line; of no tenant, it has None for one.

        Where the job works for another tenant than its message's, it is that one.
        """
        message, tenancy = self._message, current_tenancy()
        tenant_id = tenancy.tenant_id if tenancy else None
        if tenant_id is None and self._options.get("tenant_id") is not None:
            try:
                tenant_id = parse_uuid("tenant_id", self._options["tenant_id"])
            except InvalidTenant:
                tenant_id = None
        correlation_id = tenancy.correlation_id if tenancy else None
        return {
            "queue": _name(q_name(str(message.queue_name))),
            "actor": _name(message.actor_name),
            "message_id": _name(message.message_id),
            "tenant_id": None if tenant_id is None else str(tenant_id),
            "correlation_id": str(correlation_id or correlation_of(self._options, message.message_id)),
            "attempt": self.attempt,
        }


def _name(value: object) -> str:
    return cut(clean(str(value)), NAME_LIMIT)


_current: ContextVar[Job | None] = ContextVar("dramaturg_job", default=None)


def current_job() -> Job | None:
    """Return the job at hand, or ``None`` outside of one."""
    return _current.get()


@contextmanager
def lines_of(message: MessageProxy) -> Iterator[None]:
    """Let lines inside the ``with`` block carry ``message``; for threads that only speak of it."""
    token = _current.set(_job_of(message))
    try:
        yield
    finally:
        _current.reset(token)


def _job_of(message: MessageProxy) -> Job:
    # One for all of an execution, whatever becomes of the message's options meanwhile.
    job: Job | None = message.__dict__.get("_dramaturg_job")
    if job is None:
        job = message.__dict__["_dramaturg_job"] = Job(message)
    return job


class LogContext(Middleware):
    """Binds every message while Dramatiq's threads work on it, from its receipt to its end, and nothing afterwards.

    It surrounds their work instead of binding in hooks: Dramatiq logs before the first and after the last of them, some
    messages get none, and nothing must stay for the lines of the next. First in the list, so that it surrounds also
    what other middleware put around it.
    """

    def after_worker_thread_boot(self, broker: Broker, thread: WorkerThread) -> None:
        surround_messages(thread, _bound)

    def after_consumer_thread_boot(self, broker: Broker, thread: ConsumerThread) -> None:
        surround_messages(thread, _bound)


def _bound(handle: Handle) -> Handle:
    def handle_bound(message: MessageProxy) -> None:
        if _current.get() is not None:
            # A worker's thread ends its message in a method of the thread that has fetched it.
            handle(message)
            return
        token = _current.set(_job_of(message))
        try:
            handle(message)
        finally:
            _current.reset(token)

    return handle_bound
