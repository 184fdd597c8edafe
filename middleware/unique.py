"""Jobs of which one at a time is enough: at most one message for each tenant and set of arguments.

What makes two messages the same is a key in their options. Redis holds a lock for each key, which is taken in the step
in which a message is enqueued, moves with its retries, and ends in the step in which it ends. A lock whose message is
gone holds nobody up, however it went.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from dramatiq import Actor, Broker, Message

from middleware.dramatiq_internals import sent_by_somebody
from middleware.errors import InvalidUnique, NotUnique, SendRefused
from middleware.hooks import BeforeEnqueue
from middleware.message_checks import UNIQUE
from middleware.signatures import positional_names

__all__ = ["InvalidUnique", "NotUnique", "Outcome", "Unique", "UniqueJobs", "outcome"]

Until = Literal["start", "end"]
Second = Literal["refuse", "ignore", "replace"]

#: Seconds in the longest period: ten years.
PERIOD_AT_MOST: Final = 10 * 366 * 86_400

#: Milliseconds after which Redis forgets a lock whose message has neither moved nor ended: more than a year.
KEEP: Final = 400 * 86_400_000

#: Where a message that ``send()`` returned says what became of it. It does not travel.
OUTCOME: Final = "dramaturg_outcome"


@dataclass(frozen=True, slots=True)
class Unique:
    """What an actor declares: ``@actor(unique=Unique(...))``.

    Arguments:
      by: Names of the arguments that tell messages apart; all of them by default, none where it is empty.
      until: How long one keeps a second away: ``"end"``, until it has succeeded or is a failed job, its retries
        included; ``"start"``, until a worker has fetched it.
      period: Seconds after it was sent for which it does so in any case, unless it fails.
      second: What becomes of the second: ``"refuse"``, ``send()`` raises :class:`NotUnique`; ``"ignore"``, it is not
        sent, and :func:`outcome` says so; ``"replace"``, it takes the place of the first where that still waits, and is
        refused where that is running.

    Raises:
      InvalidUnique: Naming the argument and its value.
    """

    by: tuple[str, ...] | None = None
    until: Until = "end"
    period: float | None = None
    second: Second = "refuse"

    def __post_init__(self) -> None:
        if self.by is not None and (isinstance(self.by, str) or not all(isinstance(name, str) for name in self.by)):
            raise InvalidUnique(f"by: must be names of arguments, such as ('window_start',), not {self.by!r}")
        if self.until not in ("start", "end"):
            raise InvalidUnique(f"until: must be 'start' or 'end', not {self.until!r}")
        if self.second not in ("refuse", "ignore", "replace"):
            raise InvalidUnique(f"second: must be 'refuse', 'ignore' or 'replace', not {self.second!r}")
        if self.period is not None and not (
            isinstance(self.period, int | float)
            and not isinstance(self.period, bool)
            and math.isfinite(self.period)
            and 0 < self.period <= PERIOD_AT_MOST
        ):
            raise InvalidUnique(f"period: must be seconds, more than 0 and at most ten years, not {self.period!r}")


class Outcome(NamedTuple):
    """What became of a message that was sent.

    Attributes:
      sent: Whether it was.
      because_of: The message id of the one that kept it away.
      state: What that one was doing: ``waiting``, ``running``, or ``recent`` where it has ended within the period.
      replaced: The message id of the one whose place it took.
    """

    sent: bool
    because_of: str | None = None
    state: str | None = None
    replaced: str | None = None


def outcome(message: Message[Any]) -> Outcome:
    """Return what became of ``message``, which ``send()`` returned."""
    return Outcome(**message.options.get(OUTCOME, {"sent": True}))


def was_sent(message: Message[Any]) -> bool:
    """Tell whether ``message``, which ``send()`` returned, was sent: ``outcome(message).sent``, asked of each."""
    said = message.options.get(OUTCOME)
    return said is None or bool(said["sent"])


class UniqueJobs(BeforeEnqueue):
    """Gives messages of actors that are ``unique`` their key. After ``TenantContext``, which says whose they are.

    Raises (at import):
      InvalidUnique: When an actor's ``unique`` is none, or names an argument that it does not take.

    Raises (from ``send()``):
      SendRefused: When the message is a member of a group, which would never be complete without it.
    """

    @property
    def actor_options(self) -> set[str]:
        return {"unique"}

    def before_declare_actor(self, broker: Broker, actor: Actor[..., Any]) -> None:
        unique = actor.options.get("unique")
        if unique is None:
            return
        what = f"actor {actor.actor_name!r}: unique"
        if not isinstance(unique, Unique):
            raise InvalidUnique(f"{what}: must be middleware.unique.Unique(...), not {unique!r}")
        parameters = inspect.signature(actor.fn).parameters
        if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
            return
        unknown = [name for name in unique.by or () if name not in parameters]
        if unknown:
            raise InvalidUnique(f"{what}: by names {unknown[0]!r}, which {actor.fn.__name__}() does not take")

    def before_enqueue_many(self, broker: Broker, messages: Sequence[Message[Any]], delay: int | None) -> None:
        for message in sent_by_somebody(messages):
            actor = broker.actors.get(message.actor_name)
            if actor is None:
                continue
            # Those of an earlier sending of the same message.
            message.options.pop(UNIQUE, None)
            message.options.pop(OUTCOME, None)
            unique = actor.options.get("unique")
            if unique is not None:
                _make_unique(broker, actor, unique, message)


def _make_unique(broker: Broker, actor: Actor[..., Any], unique: Unique, message: Message[Any]) -> None:
    if message.options.get("group_completion_uuid") is not None:
        raise SendRefused(
            f"message for actor {message.actor_name!r}, which is unique, cannot be a member of a group: where it is "
            "not sent the group would never be complete"
        )
    try:
        message.options[UNIQUE] = _option(broker, actor, unique, message)
    except Exception as e:
        raise SendRefused(f"message for actor {message.actor_name!r}: what makes it unique: {e!r}") from e


def _option(broker: Broker, actor: Actor[..., Any], unique: Unique, message: Message[Any]) -> dict[str, Any]:
    option: dict[str, Any] = {
        "key": key_of(broker, actor, unique, message),
        "until": unique.until,
        "second": unique.second,
    }
    if unique.period is not None:
        option["period"] = round(unique.period * 1000)
    return option


def key_of(broker: Broker, actor: Actor[..., Any], unique: Unique, message: Message[Any]) -> str:
    """Return what two messages have in common that are the same: 40 hexadecimal digits."""
    names = positional_names(broker, actor.actor_name, len(message.args))
    given = dict(zip(names, message.args, strict=False)) | message.kwargs
    rest = list(message.args[len(names) :])
    # One that leaves out an argument is the same as one that gives its default.
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(actor.fn).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    given = defaults | given
    if unique.by is not None:
        given, rest = {name: given.get(name) for name in unique.by}, []
    said = json.dumps([actor.actor_name, message.options.get("tenant_id"), given, rest], sort_keys=True, default=str)
    return hashlib.sha256(said.encode()).hexdigest()[:40]


def policy_of(options: Mapping[str, Any]) -> str:
    """Return what Redis is to know of a message's uniqueness; empty where it need not be unique."""
    option = options.get(UNIQUE)
    if option is None:
        return ""
    return f"{option['key']} {option['until']} {option['second']} {option.get('period', 0)}"


def settled(message: Message[Any], code: int, other: bytes, state: bytes) -> Message[Any]:
    """Return ``message`` with what Redis said of it.

    Arguments:
      code: 1: it is enqueued; 2: in the place of another; 0: it is not.
      other: The message id of that other one.
      state: What that one does.
    """
    if code == 1:
        return message
    if code == 2:
        return message.copy(options={OUTCOME: {"sent": True, "replaced": other.decode()}})
    return message.copy(options={OUTCOME: {"sent": False, "because_of": other.decode(), "state": state.decode()}})


def refuse(message: Message[Any]) -> None:
    """Say of a message that was not sent so, if its sender is to hear of it.

    Raises:
      NotUnique: Unless a second is to be ignored.
    """
    if message.options[UNIQUE]["second"] != "ignore":
        said = message.options[OUTCOME]
        raise NotUnique(message.message_id, message.actor_name, said["because_of"], said["state"])
