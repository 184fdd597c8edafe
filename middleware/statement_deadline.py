"""Ends a job's SQL when its time limit does.

``TimeLimit`` raises in the job's thread, which libpq does not hear while it waits for Postgres.
"""

from __future__ import annotations

import math
from typing import Any

from dramatiq import Broker, MessageProxy
from dramatiq.middleware import Middleware

from db.deadline import set_deadline
from middleware.time_limit import time_limit_of


class StatementDeadline(Middleware):
    """Gives ``db.session`` the job's time limit, which becomes ``statement_timeout``, ``lock_timeout`` and a watchdog.

    Arguments:
      time_limit: Milliseconds, for actors and messages that do not say; the same as ``TimeLimit``'s.
    """

    def __init__(self, *, time_limit: float) -> None:
        self.time_limit = time_limit

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        limit = time_limit_of(broker, message, self.time_limit)
        set_deadline(None if math.isinf(limit) else limit / 1000, job=message)

    def after_process_message(
        self,
        broker: Broker,
        message: MessageProxy,
        *,
        result: Any = None,
        exception: BaseException | None = None,
    ) -> None:
        set_deadline(None)

    def after_skip_message(self, broker: Broker, message: MessageProxy) -> None:
        set_deadline(None)
