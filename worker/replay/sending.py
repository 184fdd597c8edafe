"""Puts replayed messages into Redis, each once, and withdraws those that are never to be.

:mod:`worker.daily.fan_out` sends in the same way.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final
from uuid import UUID

from dramatiq import Message

from middleware.lua_scripts import Scripts

#: Seconds for which Redis remembers that a message was sent or withdrawn: longer than a claim waits for its process.
REMEMBER: Final = 30 * 24 * 3600
#: The same once Postgres knows it, too: longer than a process may be frozen between its claim and its sending, while
#: another does that for it. Each takes about a hundred bytes.
REMEMBER_SENT: Final = 24 * 3600


def send(run: Scripts, messages: Sequence[tuple[UUID, Message[object]]]) -> set[UUID]:
    """Put messages on their queues, those that were put there before excepted, and return the items that are sent.

    Raises:
      ConnectionClosed: For any error of Redis. It may have them; saying it again does no harm.
    """
    parts: list[str | bytes | int] = [REMEMBER]
    for item, message in messages:
        parts += [message.queue_name, str(item), message.encode()]
    said = run("send_replays", *parts)
    return {item for (item, _), done in zip(messages, said, strict=True) if done}


def remember(run: Scripts, items: Iterable[UUID]) -> None:
    """Note that Postgres knows by now that items are sent.

    Raises:
      ConnectionClosed: For any error of Redis. Then it is remembered for longer.
    """
    run("remember_replays", REMEMBER_SENT, *map(str, items))


def withdraw(run: Scripts, items: Iterable[UUID]) -> set[UUID]:
    """Return those items that were not sent and never will be.

    Raises:
      ConnectionClosed: For any error of Redis.
    """
    given = list(items)
    said = run("withdraw_replays", REMEMBER, *map(str, given))
    return {item for item, done in zip(given, said, strict=True) if done}
