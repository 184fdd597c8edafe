"""What is sent and what goes wrong, and when: the same for the same seed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from worker.queues import Queue

QUEUES = tuple(queue.value for queue in Queue)
TENANTS = tuple(UUID(int=0xC0 + n) for n in range(3))

#: Of a hundred messages. Poison is counted apart, because each takes three processes with it.
WEIGHTS = {
    "success": 31,
    "slow": 4,
    "fail then succeed": 9,
    "exhaust retries": 8,
    "throws": 7,
    "expire": 5,
    "delayed": 8,
    "children": 4,
    "in a transaction": 7,
    "pipeline": 4,
    "group": 2,
    "unknown actor": 3,
    "undecodable": 2,
    "flood": 1,
    "many": 1,
    "unique": 4,
}
POISON = "poison"
#: One poison in so many messages.
POISON_EVERY = 1_000

#: Messages that are sent at once, in one step; and that are the same, of which one is enough.
MANY, SAME = 20, 3
#: Messages of one tenant that come at once in a flood; the jobs of this tenant that may run at once in this queue.
FLOOD = 40
LIMITED = (QUEUES[0], TENANTS[0], 2)

#: Faults and how often each comes; those that end processes seldom enough that few messages meet three of them.
FAULTS = {
    "kill one process": 4,
    "kill a keeper": 2,
    "kill an entry": 3,
    "freeze for less than a lease": 4,
    "freeze for more than a lease": 3,
    "freeze an entry for more than a lease": 2,
    "terminate an entry": 3,
    "stop Postgres": 3,
    "restart Redis": 3,
    "cut Redis": 4,
    "cut Postgres": 3,
    "lose an answer of Redis": 6,
    "lose a command to Redis": 2,
}
#: Scripts whose answer or command gets lost.
SCRIPTS = ("fetch", "fetch_due", "finish", "finish_many", "enqueue", "beat", "relay")

#: Of the whole time, until when messages are sent and faults begin; and poison, which needs the longest to end.
SENDING, FAULTING, POISONING = 0.62, 0.66, 0.35
#: Seconds at the start in which nothing goes wrong.
QUIET = 4.0


@dataclass(frozen=True, slots=True)
class Planned:
    """A message, or a pipeline, a group or a flood of them.

    Attributes:
      id: The message's; those of its follow-ups are derived from it.
      at: Seconds after the start.
      work: What the actor is told; see :mod:`tests.chaos.actors`.
      options: Dramatiq's.
      delay: Milliseconds.
    """

    id: UUID
    at: float
    kind: str
    queue: str
    tenant: UUID
    work: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    delay: int | None = None


@dataclass(frozen=True, slots=True)
class PlannedFault:
    """A fault.

    Attributes:
      at: Seconds after the start.
      seconds: How long it lasts.
      which: Chooses among what it can hit, 0 to 1.
      detail: A script's name, or how it is done.
    """

    at: float
    kind: str
    seconds: float
    queue: str
    which: float
    detail: str


def actor_name(queue: str, kind: str) -> str:
    """Return the name of the actor that does ``kind``."""
    return f"chaos.{queue}.{_ACTORS.get(kind, 'job')}"


#: Those that not just any actor does.
_ACTORS = {"unknown actor": "nobody", "throws": "strict", "unique": "only"}


def messages(seed: int, count: int, seconds: float) -> list[Planned]:
    """Return ``count`` messages to be sent in a run of ``seconds``, in order of time."""
    rng = random.Random(f"messages {seed}")  # noqa: S311 - to be repeated
    planned = [_message(rng, rng.uniform(0, SENDING * seconds)) for _ in range(count - _poisons(count))]
    planned += [_poison(rng, rng.uniform(QUIET, POISONING * seconds)) for _ in range(_poisons(count))]
    return sorted(planned, key=lambda message: message.at)


def _poisons(count: int) -> int:
    return 1 + count // POISON_EVERY


def _poison(rng: random.Random, at: float) -> Planned:
    work = {"kind": POISON, "seconds": rng.uniform(0.05, 0.3)}
    return Planned(_uuid(rng), at, POISON, rng.choice(QUEUES), rng.choice(TENANTS), work, {"max_retries": 3})


def _uuid(rng: random.Random) -> UUID:
    return UUID(int=rng.getrandbits(128), version=4)


def _message(rng: random.Random, at: float) -> Planned:
    kind = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
    queue, tenant, message_id = rng.choice(QUEUES), rng.choice(TENANTS), _uuid(rng)
    work: dict[str, Any] = {"kind": kind, "seconds": rng.uniform(0, 0.03), "asks": rng.random() < 0.3}
    options: dict[str, Any] = {"max_retries": 3}
    delay = None
    match kind:
        case "slow":
            work["seconds"] = rng.uniform(0.5, 4)
        case "fail then succeed":
            work["fails"] = rng.randint(1, 3)
        case "exhaust retries":
            options["max_retries"] = rng.randint(0, 2)
            work["fails"] = 1_000
        case "throws":
            work["fails"] = 1_000
        case "expire":
            options["max_age"] = rng.choice([1, 300])
            delay = rng.choice([None, 800])
        case "delayed":
            delay = rng.randint(200, 9_000)
        case "children":
            work["children"] = rng.randint(1, 3)
        case "flood":
            work["seconds"] = rng.uniform(0, 0.01)
            work["stock"] = rng.random() < 0.5
        case "unique":
            work["seconds"] = rng.uniform(0, 0.5)
            work["fails"] = rng.randint(0, 2)
        case "in a transaction":
            work["transaction"] = rng.choice(["commit", "roll back", "roll back to a savepoint"])
        case "undecodable":
            work["broken"] = rng.choice(["not JSON", "a field of the wrong type"])
        case _:
            pass
    return Planned(message_id, at, kind, queue, tenant, work, options, delay)


def faults(seed: int, seconds: float, every: float = 4.0) -> Iterator[PlannedFault]:
    """Return the faults of a run of ``seconds``, in order of time: each kind once, if there is time, then by weight.

    Arguments:
      every: Seconds between them, on average.
    """
    rng = random.Random(f"faults {seed}")  # noqa: S311 - to be repeated
    deck = list(FAULTS)
    rng.shuffle(deck)
    at = QUIET
    while at < FAULTING * seconds:
        # Now and then two at once.
        for _ in range(rng.choice([1, 1, 1, 2])):
            kind = deck.pop() if deck else rng.choices(list(FAULTS), list(FAULTS.values()))[0]
            yield _fault(rng, kind, at)
        at += rng.uniform(0.5 * every, 1.5 * every)


def _fault(rng: random.Random, kind: str, at: float) -> PlannedFault:
    seconds = {
        "freeze for less than a lease": rng.uniform(1, 6),
        "freeze for more than a lease": rng.uniform(9.5, 14),
        "freeze an entry for more than a lease": rng.uniform(9.5, 14),
        "stop Postgres": rng.uniform(0.5, 6),
        "restart Redis": rng.uniform(0, 4),
        "cut Redis": rng.uniform(0, 3),
        "cut Postgres": rng.uniform(0, 5),
    }.get(kind, 0.0)
    how = rng.choice(["gracefully", "by SIGKILL"]) if kind == "restart Redis" else rng.choice(SCRIPTS)
    return PlannedFault(at, kind, seconds, rng.choice(QUEUES), rng.random(), how)
