"""Turns messages that were skipped without being failed into failures."""

from __future__ import annotations

import sys

from dramatiq import Broker, MessageProxy
from dramatiq.middleware import Middleware


class FailedSkips(Middleware):
    """Fails what a ``SkipMessage`` kept from running: it has not succeeded, so it becomes a row.

    Stock Dramatiq acknowledges it, unless the middleware that raised had called ``message.fail()`` before.
    """

    def after_skip_message(self, broker: Broker, message: MessageProxy) -> None:
        if not message.failed:
            message.fail()
            error = sys.exception()
            if error is not None:
                message.stuff_exception(error)
