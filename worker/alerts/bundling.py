"""How many alerts go out: a storm of a thousand causes is one message; a calculation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from worker.alerts.causes import Cause, Kind

#: Seconds within which so many causes are told by themselves; of what comes beyond, all together are one message, once
#: in that time.
PERIOD: Final = 300.0
SINGLES: Final = 5
#: Causes that one message is about at most, and those of them that it describes.
BUNDLED_AT_MOST: Final = 2_000
DESCRIBED_AT_MOST: Final = 20

_ORDER: Final = list(Kind)


@dataclass(frozen=True, slots=True)
class Sent:
    """What went out lately: when, in seconds since 1970, and whether it was a bundle."""

    at: float
    bundle: bool


@dataclass(frozen=True, slots=True)
class Chosen:
    """What goes out now: some causes by themselves, or some in one message. The others wait for a later look."""

    singles: Sequence[Cause] = ()
    bundle: Sequence[Cause] = ()


def choose(causes: Sequence[Cause], sent: Sequence[Sent], now: float) -> Chosen:
    """Return what goes out, the worst first.

    Arguments:
      causes: All that is news.
      sent: What went out lately.
      now: Seconds since 1970.
    """
    lately = still(sent, now)
    ranked = sorted(causes, key=lambda cause: (_ORDER.index(cause.kind), cause.over is True))
    if len(ranked) <= SINGLES - sum(not each.bundle for each in lately):
        return Chosen(singles=ranked)
    if any(each.bundle for each in lately):
        return Chosen()
    return Chosen(bundle=ranked[:BUNDLED_AT_MOST])


def still(sent: Sequence[Sent], now: float) -> list[Sent]:
    """Return what went out within the last :data:`PERIOD`. What is said to come later is of a clock that was wrong."""
    return [each for each in sent if 0 <= now - each.at < PERIOD]
