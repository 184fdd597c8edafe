"""Dramatiq's time limit, of which nothing is left to fire once a job has ended."""

from __future__ import annotations

import threading

from dramatiq import Broker, MessageProxy
from dramatiq.middleware import TimeLimit as DramatiqTimeLimit

from middleware.dramatiq_internals import Deadlines


def time_limit_of(broker: Broker, message: MessageProxy, default: float) -> float:
    """Return a message's time limit in milliseconds, as Dramatiq's ``TimeLimit`` reads it; it may be infinite."""
    actor = broker.get_actor(message.actor_name)
    limit: float = message.options.get("time_limit") or actor.options.get("time_limit", default)
    return limit


class TimeLimit(DramatiqTimeLimit):
    """Interrupts jobs that run for longer than their ``time_limit``, and nothing after them.

    One that imports a module just then is interrupted once it has done that.

    Arguments:
      time_limit: Milliseconds, for actors and messages that do not say.
      interval: Milliseconds between two looks at the clock.
    """

    def __init__(self, *, time_limit: float = 600_000, interval: int = 1_000) -> None:
        super().__init__(time_limit=time_limit, interval=interval)
        # Under gevent there are no threads to interrupt, and the manager is another.
        if isinstance(self.manager, threading.Thread):
            self.manager = Deadlines(interval, logger=self.logger)
