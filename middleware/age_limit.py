"""Dramatiq's age limit, with an exception of its own, so that the failure row can say that the message expired."""

from __future__ import annotations

from dramatiq import Broker, MessageProxy
from dramatiq.middleware import AgeLimit as DramatiqAgeLimit
from dramatiq.middleware import SkipMessage

from middleware.errors import MessageExpired


class AgeLimit(DramatiqAgeLimit):
    """Drops messages that waited longer than their ``max_age`` (milliseconds); they end as ``expired`` rows."""

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        try:
            super().before_process_message(broker, message)
        except SkipMessage as e:
            raise MessageExpired(str(e)) from None
