"""Dramatiq's retries, from which no message gets lost, and which tell of the executions before them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from dramatiq import Broker, MessageProxy
from dramatiq.common import current_millis
from dramatiq.middleware import Retries
from loguru import logger

from middleware import attempts
from middleware.deliveries import Delivery
from middleware.process_facts import process_name
from middleware.redaction import Redactor


class SafeRetries(Retries):
    """Fails a message that cannot be retried, whatever keeps it from being so: it becomes a row.

    Stock Dramatiq acknowledges it: hooks that raise are logged, and what has not failed has succeeded.

    Arguments:
      redact: Takes secrets out of what travels with a retry.
      worker_name: Of this process; the host's name by default. The process id is added.
      clock: Returns the time, with a time zone.
      options: Those of Dramatiq's ``Retries``.
    """

    def __init__(
        self,
        *,
        redact: Redactor | None = None,
        worker_name: str | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._redact = redact or Redactor()
        self._worker_name = worker_name
        self._clock = clock
        self._local = threading.local()

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        self._local.began = (message, self._clock())

    def after_skip_message(self, broker: Broker, message: MessageProxy) -> None:
        self._local.began = None

    def after_process_message(
        self,
        broker: Broker,
        message: MessageProxy,
        *,
        result: Any = None,
        exception: BaseException | None = None,
    ) -> None:
        began, self._local.began = getattr(self._local, "began", None), None
        if exception is None or (isinstance(message, Delivery) and message.give_back):
            return
        before = dict(message.options)
        try:
            if self._is_last(broker, message, exception):
                self._give_up(message)
                return
            self._remember(message, exception, began[1] if began and began[0] is message else self._clock())
            super().after_process_message(broker, message, result=result, exception=exception)
        except BaseException as e:  # noqa: BLE001 - a retry_when may raise anything, and an interrupt may come late
            # The row is to tell of the delivery as it was, and of the actor's exception, which the message holds.
            message.options.clear()
            message.options.update(before)
            message.fail()
            logger.opt(exception=True).error("message {} cannot be retried", message.message_id)
            exception.add_note(f"It was not retried or its end not announced, because of {type(e).__name__}.")

    def _is_last(self, broker: Broker, message: MessageProxy, exception: BaseException) -> bool:
        """Tell whether surely nothing follows: no retry, and nobody who is told of it."""
        own, options = broker.get_actor(message.actor_name).options, message.options
        throws = options.get("throws") or own.get("throws")
        if throws and isinstance(exception, throws):
            return False
        if options.get("on_retry_exhausted") or own.get("on_retry_exhausted"):
            return False
        max_retries = options.get("max_retries", own.get("max_retries", self.max_retries))
        asks = own.get("retry_when", self.retry_when) is not None
        return not asks and max_retries is not None and bool(options.get("retries", 0) >= max_retries)

    def _give_up(self, message: MessageProxy) -> None:
        """Do as Dramatiq does, but for the traceback among the options, which nobody would see: it costs half of all
        that a failure does."""
        message.options["retries"] = message.options.get("retries", 0) + 1
        message.options["requeue_timestamp"] = current_millis()
        self.logger.warning("Retries exceeded for message %r.", message.message_id)
        message.fail()

    def _remember(self, message: MessageProxy, exception: BaseException, at: datetime) -> None:
        """Add this execution to what a retry carries. Where there is none, ``DeadLetters`` knows better."""
        try:
            retries = message.options.get("retries", 0)
            earlier = attempts.travelled(message.options, retries)
            now = attempts.attempt(message.actor_name, exception, at, process_name(self._worker_name), self._redact)
            message.options[attempts.OPTION] = attempts.last([*earlier, now])
        except Exception:  # noqa: BLE001 - a user's exception; a retry that does not tell of it beats none
            logger.opt(exception=True).error("an execution of message {} is not remembered", message.message_id)
