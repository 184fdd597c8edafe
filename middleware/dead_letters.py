"""Writes every dead message to ``worker_failed_jobs`` before Dramatiq lets go of it."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from dramatiq import Broker, Message, MessageProxy
from dramatiq.common import q_name
from dramatiq.middleware import Middleware
from loguru import logger

from db.failures import Failure
from db.tenancy import current_tenant
from middleware import attempts
from middleware.classification import UNKNOWN, Classifier
from middleware.deliveries import Delivery
from middleware.dramatiq_internals import exception_of
from middleware.errors import NotRecorded, WorkerLost
from middleware.fingerprint import MESSAGE_KEPT, fingerprint, normalise, place
from middleware.message_checks import InvalidMessage
from middleware.process_facts import process_name
from middleware.redaction import Redactor
from middleware.replays import replay_of
from middleware.signatures import positional_names
from middleware.tenant_context import correlation_of
from middleware.text import class_of, clean, message_of
from middleware.traceback_text import traceback_text

if TYPE_CHECKING:
    from middleware.failure_endings import FailureEndings

#: Characters kept of an exception's message, and of its traceback.
MESSAGE_LIMIT = 10_000
TRACEBACK_LIMIT = 50_000
T = TypeVar("T")

#: ``task_name`` of what is no message.
UNDECODABLE_NAME = "(undecodable)"


class _Execution(NamedTuple):
    """What was true when a message began to run, which Retries then changes."""

    message: MessageProxy
    retries: int
    started_at: datetime
    earlier: list[dict[str, Any]]


class DeadLetters(Middleware):
    """Records dead messages, whatever Dramatiq rejected them for. Second in the list, after ``TenantContext``.

    Where the row cannot be written the failure goes into the spool, in the step in which the message leaves its queue;
    on a broker that has none Dramatiq keeps the message and asks again every five seconds, holding the worker thread.

    Arguments:
      record: Writes a failure, or raises soon; :meth:`db.failure_writer.FailureWriter.record`, or what a test looks at.
      classify: Gives an exception its error type.
      redact: Takes secrets out of arguments and text.
      seal: Encrypts the message as it was fetched, and names the key; :meth:`db.sealing.Keys.seal`. By default it is
        kept as it is.
      worker_name: Of this process; the host's name by default. The process id is added.
      clock: Returns the time, with a time zone.
      announce: Asked of each failure, once, with its exception, for what is to be called when its message has ended;
        neither must raise or wait.
      endings: Ends messages once their failures are recorded; by default the thread that ran a message waits for that.

    Attributes:
      redact: As given.
    """

    def __init__(
        self,
        record: Callable[[Failure], object],
        *,
        classify: Callable[[BaseException | None], str] | None = None,
        redact: Redactor | None = None,
        seal: Callable[[bytes], tuple[bytes, str]] | None = None,
        worker_name: str | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        announce: Callable[[Failure, BaseException | None], Callable[[], object]] | None = None,
        endings: FailureEndings | None = None,
    ) -> None:
        self._record = record
        self._announce = announce or _unheard
        self._endings = endings
        self._classify = classify or Classifier()
        self.redact = redact or Redactor()
        self._seal = seal
        self._worker_name = worker_name
        self._clock = clock
        self._local = threading.local()

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        retries = _retries(message)
        earlier = attempts.travelled(message.options, retries)
        self._local.execution = _Execution(message, retries, self._clock(), earlier)

    def after_skip_message(self, broker: Broker, message: MessageProxy) -> None:
        self._local.execution = None

    def after_ack(self, broker: Broker, message: MessageProxy) -> None:
        self._local.execution = None

    def before_nack(self, broker: Broker, message: MessageProxy) -> None:
        if isinstance(message, Delivery):
            # Of an attempt to end it before this one.
            message.to_spool = message.ends_later = None
        self._local.rejected = None
        try:
            failure = self.describe(broker, message)
        except Exception as e:
            raise self._not_recorded(message, e) from e
        if isinstance(message, Delivery):
            message.error_type = failure.error_type
            if self._endings is not None and self._endings.takes(broker, message):
                message.ends_later = partial(self._end_later, broker, self._endings, message, failure)
                return
        self._local.rejected = (message, failure)
        try:
            self._record(failure)
        except Exception as e:
            if not isinstance(message, Delivery):
                raise self._not_recorded(message, e) from e
            self._to_spool(message, failure, e)

    def _end_later(
        self,
        broker: Broker,
        endings: FailureEndings,
        message: Delivery,
        failure: Failure,
        end: Callable[[Delivery], object],
    ) -> None:
        # Not with the exception, whose frames hold all that the job had at hand.
        ended = self._announcement(failure, exception_of(message))
        endings.take(broker, failure, message, end, partial(self._to_spool, message, failure), ended)

    def _announcement(self, failure: Failure, error: BaseException | None) -> Callable[[], object]:
        try:
            return self._announce(failure, error)
        except Exception:  # noqa: BLE001 - the message has to end, whoever wanted to tell of that
            logger.opt(exception=True).error("nobody is told of the failure of message {}", failure.task_id)
            return _nothing

    def _to_spool(self, message: Delivery, failure: Failure, error: BaseException) -> None:
        logger.error(
            "failure of message {} for actor {} goes into the spool: {}",
            message.message_id,
            message.actor_name,
            self.redact.text(message_of(error), 1_000),
        )
        try:
            message.to_spool = json.dumps(failure.as_json()).encode()
        except Exception as e:
            raise self._not_recorded(message, e) from e

    def _not_recorded(self, message: MessageProxy, error: Exception) -> NotRecorded:
        logger.error(
            "failure of message {} for actor {} is NOT recorded yet, so the message stays where it is; "
            "trying again in 5 seconds: {}",
            message.message_id,
            message.actor_name,
            self.redact.text(message_of(error), 1_000),
        )
        return NotRecorded(f"failure of message {message.message_id} could not be recorded")

    #: See :class:`middleware.failure_endings.FailureEndings`.
    tidies_after_nack = True

    def after_nack(self, broker: Broker, message: MessageProxy) -> None:
        self._local.execution = None
        rejected, self._local.rejected = getattr(self._local, "rejected", None), None
        # Only now: before_nack is called again and again while neither Postgres nor the spool takes the failure. And of
        # what is another worker's by now nothing was recorded.
        if rejected is not None and rejected[0] is message:
            self._announce(rejected[1], exception_of(message))()

    def describe(self, broker: Broker, message: MessageProxy) -> Failure:
        """Return the failure of a dead message, for the tenant that is bound."""
        error = exception_of(message)
        execution: _Execution | None = getattr(self._local, "execution", None)
        if execution is not None and execution.message is not message:
            execution = None
        # Retries counts the failing execution, too, before it gives up; a message that was not run this time carries
        # the executions before.
        retry_count = execution.retries if execution else max(0, _retries(message) - 1)
        last_retry_at = execution.started_at if execution and retry_count else None
        if isinstance(error, WorkerLost):
            retry_count = _retries(message) + error.starts - 1
            last_retry_at = datetime.fromtimestamp(error.last_start / 1000, UTC) if retry_count else None
        task_name = message.actor_name if isinstance(message.actor_name, str) else UNDECODABLE_NAME
        task_id = task_id_of(message)
        task_name = clean(task_name)[:255] or UNDECODABLE_NAME
        names = positional_names(broker, message.actor_name, len(message.args))
        error_message = (
            self.redact.text(message_of(error), MESSAGE_LIMIT)
            if error is not None
            else "the message was rejected without an exception"
        )
        original, original_key = self._original(message)
        where = _or(None, place, task_name, error)
        replayed = replay_of(message.options)
        return Failure(
            delivery_id=_delivery_id(message, task_id),
            task_id=task_id,
            task_name=task_name,
            queue=clean(q_name(str(message.queue_name)))[:100],
            worker=process_name(self._worker_name),
            task_args=_or(None, self.redact.arguments, message.args, names),
            task_kwargs=_or(None, self.redact.value, dict(message.kwargs)),
            tenant_id=current_tenant(),
            error_type=_or(UNKNOWN, self._classify, error),
            exception_class=class_of(error) if error is not None else "(none)",
            error_message=error_message,
            traceback=self._traceback(error),
            retry_count=retry_count,
            last_retry_at=last_retry_at,
            correlation_id=correlation_of(message.options, message.message_id),
            failed_at=self._clock(),
            original=original,
            original_key=original_key,
            fingerprint=_or(None, fingerprint, task_name, error),
            title=_or(None, self._title, error, error_message),
            place=where,
            attempts=_or(None, self._attempts, message, error, error_message, where, execution),
            replayed_row=replayed[0] if replayed else None,
            replay_item=replayed[1] if replayed else None,
        )

    def _original(self, message: MessageProxy) -> tuple[bytes | None, str | None]:
        """Return what was fetched and what it is encrypted with; nothing rather than what should be and is not."""
        if not isinstance(message, Delivery):
            return None, None
        if self._seal is None:
            return message.raw, None
        try:
            return self._seal(message.raw)
        except Exception as e:  # noqa: BLE001 - its text may quote what it was given
            logger.critical(
                "the failure of message {} is recorded without its original, which cannot be encrypted: {}",
                message.message_id,
                type(e).__name__,
            )
            return None, None

    def _title(self, error: BaseException | None, message: str) -> str | None:
        # Redacted before, too: without its values a secret may not look like one any more.
        text = normalise(error.kind if isinstance(error, InvalidMessage) else message)
        return self.redact.text(text)[:MESSAGE_KEPT] or None

    def _attempts(
        self,
        message: MessageProxy,
        error: BaseException | None,
        error_message: str,
        where: str | None,
        execution: _Execution | None,
    ) -> list[dict[str, Any]]:
        """Return the last executions. What was skipped adds none; where workers were lost, it is each start."""
        if execution is not None:
            worker = process_name(self._worker_name)
            said = "" if error is None else attempts.short(message_of(error), self.redact, error_message)
            now = attempts.told(error, execution.started_at, worker, said, where)
            return attempts.last([*attempts.redacted(execution.earlier, self.redact), now])
        found = attempts.travelled(message.options, _retries(message))
        if isinstance(error, WorkerLost):
            found = attempts.last([*found, *(one.as_json() for one in error.attempts)])
        return attempts.redacted(found, self.redact)

    def _traceback(self, error: BaseException | None) -> str | None:
        if error is None:
            return None
        try:
            text = traceback_text(error)
        except BaseException as e:  # noqa: BLE001 - a row without a traceback beats no row
            text = f"(the traceback could not be formatted: {type(e).__name__})"
        return None if text is None else self.redact.text_ends(text, TRACEBACK_LIMIT)


def _unheard(_failure: Failure, _error: BaseException | None) -> Callable[[], object]:
    return _nothing


def _nothing() -> None:
    pass


def _or(default: T, fn: Callable[..., T], *args: Any) -> T:
    try:
        return fn(*args)
    except Exception:  # noqa: BLE001 - a user's exception, or its arguments; a row without a part of it beats no row
        logger.opt(exception=True).error("a part of a failure cannot be described")
        return default


def task_id_of(message: MessageProxy | Message[Any]) -> str:
    """Return the message id, or where that is not a string of 1 to 155 characters a digest that stands for it."""
    if isinstance(message.message_id, str) and 1 <= len(message.message_id) <= 155:
        text = clean(message.message_id)
        if len(text) <= 155:
            return text
    raw = json.dumps(message.asdict(), default=repr, sort_keys=True)
    parts = (str(message.queue_name), str(message.options.get("redis_message_id")), raw)
    return hashlib.sha256("\0".join(parts).encode("utf-8", "backslashreplace")).hexdigest()


def _delivery_id(message: MessageProxy, task_id: str) -> str:
    redis_id = message.options.get("redis_message_id")
    return clean(redis_id)[:255] if isinstance(redis_id, str) and redis_id else task_id


def _retries(message: MessageProxy) -> int:
    retries = message.options.get("retries", 0)
    # worker_failed_jobs.retry_count is a Postgres integer.
    return min(max(retries, 0), 2**31 - 1) if isinstance(retries, int) else 0
