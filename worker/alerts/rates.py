"""Whether too many jobs fail; a calculation.

It is told once, and once more when it is over: when no more than half as many fail as are too many, so that a number
about the limit is no alarm a minute. While too many fail altogether, no actor is told of by itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from worker.alerts.causes import Cause, Change, Kind

#: Of the hashes: the rates that are too high, by actor; of all actors under no name.
RATES: Final = ".rates"
_ALL: Final = ""
#: Actors that an alert about all of them names.
_NAMED: Final = 5


@dataclass(frozen=True, slots=True)
class Limits:
    """How many failed jobs are too many: of all actors and of one, within so many minutes."""

    overall: int
    actor: int
    minutes: int


def compare(failures: Mapping[str, int], known: Mapping[str, float], limits: Limits, now: float) -> list[Cause]:
    """Return what is news.

    Arguments:
      failures: Lately, by actor.
      known: Since when rates are too high that were told; seconds since 1970.
      limits: How many are too many.
      now: Seconds since 1970.
    """
    total, causes = sum(failures.values()), list[Cause]()
    too_many = total > limits.overall
    if too_many and _ALL not in known:
        causes.append(_begun(_ALL, failures, limits, now))
    elif _ALL in known and total * 2 <= limits.overall:
        causes.append(_over(_ALL, failures, limits, known[_ALL]))
    for actor in sorted({*failures, *known} - {_ALL}, key=lambda name: (-failures.get(name, 0), name)):
        count = failures.get(actor, 0)
        if actor not in known:
            if count > limits.actor and not too_many and _ALL not in known:
                causes.append(_begun(actor, failures, limits, now))
        elif count * 2 <= limits.actor:
            causes.append(_over(actor, failures, limits, known[actor]))
    return causes


def _begun(actor: str, failures: Mapping[str, int], limits: Limits, now: float) -> Cause:
    change = Change(RATES, actor, json.dumps(now))
    return _cause(actor, failures, limits, now, over=False, change=change)


def _over(actor: str, failures: Mapping[str, int], limits: Limits, since: float) -> Cause:
    return _cause(actor, failures, limits, since, over=True, change=Change(RATES, actor, None))


def _cause(
    actor: str, failures: Mapping[str, int], limits: Limits, since: float, *, over: bool, change: Change
) -> Cause:
    facts: dict[str, Any] = {
        "actor": actor or None,
        "failures": failures.get(actor, 0) if actor else sum(failures.values()),
        "threshold": limits.actor if actor else limits.overall,
        "minutes": limits.minutes,
        "since": since,
    }
    if not actor:
        ranked = sorted(failures.items(), key=lambda each: (-each[1], each[0]))
        facts["actors"] = [{"actor": name, "failures": count} for name, count in ranked[:_NAMED]]
    return Cause(Kind.FAILURE_RATE, f"{since:.3f} {actor}", (change,), over=over, facts=facts)
