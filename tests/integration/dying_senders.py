"""Senders and relays that die at each step, each in a process of its own; run as a module, with the settings of a
deployment, by :mod:`tests.integration.test_outbox`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import dramatiq
from sqlalchemy import text

from db import outbox, session
from db.session import operator_transaction, transaction
from db.tenancy import tenant_context
from middleware.outbox import Outbox
from middleware.relay import Relay
from worker.broker import broker
from worker.queues import Queue

TENANT = "aaaaaaaa-0000-4000-8000-000000000001"


@dramatiq.actor(queue_name=Queue.ATTRIBUTION, actor_name="test.dying")
def job(_n: int) -> None:
    """Do nothing: it is run by others."""


def die(*_: Any, **__: Any) -> None:
    """End as if by the kernel's out-of-memory killer."""
    os.kill(os.getpid(), signal.SIGKILL)


def before(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Die instead of ``fn``."""
    return die


def after(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Do ``fn``, and die."""

    def do(*args: Any, **kwargs: Any) -> None:
        fn(*args, **kwargs)
        die()

    return do


#: Where senders die: of what, its name, and when.
SENDERS: list[tuple[Any, str, Callable[..., Any]]] = [
    (outbox, "write", before),
    (outbox, "write", after),
    (Outbox, "committed", before),
    (Relay, "_put", before),
    (Relay, "_put", after),
    (outbox, "remove", before),
    (outbox, "remove", after),
    (Relay, "_forget", before),
]
#: And where relays do.
RELAYS: list[tuple[Any, str, Callable[..., Any]]] = [
    (Relay, "_put", before),
    (Relay, "_put", after),
    (outbox, "remove", after),
    (Relay, "_forget", before),
]


def forked(do: Callable[[], object]) -> int:
    """Do it in a child, and return how that ended."""
    pid = os.fork()
    if pid == 0:
        try:
            do()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def send(n: int, at: tuple[Any, str, Callable[..., Any]]) -> None:
    """Send three messages in a transaction that notes it, and die."""
    where, name, when = at
    setattr(where, name, when(getattr(where, name)))
    with tenant_context(TENANT), transaction() as db:
        db.execute(text("INSERT INTO orders VALUES (:n)"), {"n": n})
        for m in range(3):
            job.send(10 * n + m)
    relay = broker.outbox.relay  # type: ignore[attr-defined]
    relay._thread.join(30)


def relay(at: tuple[Any, str, Callable[..., Any]]) -> None:
    """Relay what waits, and die."""
    where, name, when = at
    setattr(where, name, when(getattr(where, name)))
    broker.outbox.relay.relay_all(grace=0)  # type: ignore[attr-defined]


def wait_for_turn() -> None:
    """Let another have the turn that the last one took with it."""
    broker.client.delete("dramatiq:__dramaturg__.relay")  # type: ignore[attr-defined]


def main() -> int:
    """Let all of them die, and say how they ended."""
    with operator_transaction():
        pass
    session.dispose()
    ended = [forked(lambda n=n, at=at: send(n, at)) for n, at in enumerate(SENDERS, 1)]  # type: ignore[misc]
    for at in RELAYS:
        ended.append(forked(lambda at=at: relay(at)))  # type: ignore[misc]
        wait_for_turn()
    sys.stdout.write(f"{ended}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
