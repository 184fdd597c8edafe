"""Dramatiq's retries, from which no message gets lost."""

from __future__ import annotations

from typing import Any

from dramatiq import Broker, MessageProxy
from dramatiq.middleware import Retries
from loguru import logger

from middleware.deliveries import Delivery


class SafeRetries(Retries):
    """Fails a message that cannot be retried, whatever keeps it from being so: it becomes a row.

    Stock Dramatiq acknowledges it: hooks that raise are logged, and what has not failed has succeeded.
    """

    def after_process_message(
        self,
        broker: Broker,
        message: MessageProxy,
        *,
        result: Any = None,
        exception: BaseException | None = None,
    ) -> None:
        if isinstance(message, Delivery) and message.give_back:
            return
        before = dict(message.options)
        try:
            super().after_process_message(broker, message, result=result, exception=exception)
        except BaseException as e:  # noqa: BLE001 - a retry_when may raise anything, and an interrupt may come late
            # The row is to tell of the delivery as it was, and of the actor's exception, which the message holds.
            message.options.clear()
            message.options.update(before)
            message.fail()
            logger.opt(exception=True).error("message {} cannot be retried", message.message_id)
            if exception is not None:
                exception.add_note(f"It was not retried or its end not announced, because of {type(e).__name__}.")
