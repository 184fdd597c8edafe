"""Stops messages that kill their worker, and those whose failure is recorded already though they come again."""

from __future__ import annotations

from collections.abc import Callable

from dramatiq import Broker, MessageProxy
from dramatiq.middleware import Middleware
from loguru import logger

from db.deadline import set_deadline
from middleware.deliveries import Delivery
from middleware.errors import AlreadyRecorded, LeaseLost
from middleware.lossless_broker import LosslessBroker

#: Seconds that asking for a row may take.
ASK_WITHIN = 2.0


class CrashGuard(Middleware):
    """Notes that a message begins to run, just before it does; needs a :class:`LosslessBroker`, and is idle on others.

    What was running when a worker was lost starts next alone in its process. Of what ran beside a message that kills,
    that is the end of suspicion; the one that kills is stopped after the broker's ``max_starts``.

    Arguments:
      is_recorded: Tells whether a delivery's failure is recorded; :func:`db.failed_jobs.is_recorded`.
    """

    def __init__(self, is_recorded: Callable[[str], bool] = lambda _: False) -> None:
        self._is_recorded = is_recorded

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        if not isinstance(message, Delivery) or not isinstance(broker, LosslessBroker):
            return
        if not broker.still_holds(message):
            raise LeaseLost(f"message {message.message_id} was given to another worker")
        if message.begun_before and self._was_recorded(message):
            # The worker was lost between its row and its end.
            message.fail()
            raise AlreadyRecorded(f"the failure of message {message.message_id} is recorded already")
        broker.begin(message)

    def _was_recorded(self, message: Delivery) -> bool:
        set_deadline(ASK_WITHIN)
        try:
            return self._is_recorded(message.redis_id)
        except Exception as e:  # noqa: BLE001 - Dramatiq would log it and run the message all the same
            logger.warning(
                "whether the failure of message {} is recorded cannot be asked, so it runs again: {}",
                message.message_id,
                type(e).__name__,
            )
            return False
        finally:
            set_deadline(None)
