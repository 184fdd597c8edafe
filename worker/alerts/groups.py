"""Which groups are news; a calculation.

Of each open group that was looked at a mark is kept. A group without one was never seen, or was closed meanwhile; one
that has come back is news again if all that was open when it was last told has been resolved since. So a group is told
once until it is resolved, whichever tenants it fails for and however often.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Final, Self

from db.failed.watch import OpenGroup
from middleware.classification import WORKER_LOST
from worker.alerts.causes import Cause, Change, Kind

#: Of the hashes: marks of open groups, and the groups that are closed, with how often they had come back.
OPEN, CLOSED = ".open", ".closed"
#: Seconds after which a group of messages that end their workers is told again, if another did meanwhile.
POISON_AGAIN: Final = 3_600.0


@dataclass(frozen=True, slots=True)
class Mark:
    """How a group was when it was last told, or found to be no news.

    Attributes:
      regressions: How often it had come back.
      until: When the last of what was open then had opened; seconds since 1970.
      failures: How many there were.
      at: When it was told; seconds since 1970.
    """

    regressions: int
    until: float
    failures: int
    at: float

    @classmethod
    def of(cls, group: OpenGroup, at: float) -> Self:
        """Return the mark of a group as it is now."""
        return cls(group.regressions, group.open_lately, group.failures, at)

    @classmethod
    def read(cls, data: bytes | str) -> Self | None:
        """Return what was kept; None where it is none of ours."""
        try:
            found = json.loads(data)
            return cls(int(found["regressions"]), float(found["until"]), int(found["failures"]), float(found["at"]))
        except (ValueError, KeyError, TypeError):
            return None

    def change(self, fingerprint: str) -> Change:
        """Return what keeps it."""
        return Change(OPEN, fingerprint, json.dumps(asdict(self), separators=(",", ":")))


def compare(
    groups: Iterable[OpenGroup],
    marks: Mapping[str, Mark],
    closed: Mapping[str, int],
    now: float,
) -> tuple[list[Change], list[Cause]]:
    """Return what is to be remembered in any case, and what is news.

    Arguments:
      groups: All that are open.
      marks: Of those that were open when it was last looked.
      closed: How often those had come back that were not, and are known.
      now: Seconds since 1970.
    """
    silent, causes, seen = list[Change](), list[Cause](), set[str]()
    for group in groups:
        seen.add(group.fingerprint)
        mark = marks.get(group.fingerprint)
        if mark is None:
            opened = Mark.of(group, now).change(group.fingerprint)
            before = closed.get(group.fingerprint)
            changes = (opened,) if before is None else (opened, Change(CLOSED, group.fingerprint, None))
            if before is not None and group.regressions <= before:
                # It had been abandoned, or somebody re-opened it.
                silent += changes
            else:
                kind = Kind.NEW_GROUP if before is None and not group.regressions else Kind.REGRESSED_GROUP
                causes.append(_cause(kind, group, changes))
        else:
            silent += _compare(group, mark, now, causes)
    silent += (change for name, mark in marks.items() if name not in seen for change in close(name, mark.regressions))
    return silent, causes


def _compare(group: OpenGroup, mark: Mark, now: float, causes: list[Cause]) -> Iterator[Change]:
    if group.regressions > mark.regressions and group.open_since > mark.until:
        causes.append(_cause(Kind.REGRESSED_GROUP, group, (Mark.of(group, now).change(group.fingerprint),)))
    elif group.error_type == WORKER_LOST and group.failures > mark.failures and now - mark.at >= POISON_AGAIN:
        causes.append(_cause(Kind.POISON_PILL, group, (Mark.of(group, now).change(group.fingerprint),)))
    elif group.regressions != mark.regressions:
        # Back for some tenants, while it goes on for others; or a tenant was removed with what it counted.
        yield Mark(group.regressions, group.open_lately, mark.failures, mark.at).change(group.fingerprint)


def close(fingerprint: str, regressions: int) -> tuple[Change, Change]:
    """Return what notes that a group is closed."""
    return Change(OPEN, fingerprint, None), Change(CLOSED, fingerprint, str(regressions))


def begin(everything: Mapping[str, int], groups: Collection[OpenGroup], now: float) -> list[Change]:
    """Return what notes that all that is there is no news.

    Arguments:
      everything: All groups, and how often each came back.
      groups: Those that are open.
      now: Seconds since 1970.
    """
    opened = {group.fingerprint: Mark.of(group, now) for group in groups}
    return [
        change
        for name, regressions in everything.items()
        for change in ((opened[name].change(name),) if name in opened else close(name, regressions))
    ]


def _cause(kind: Kind, group: OpenGroup, changes: tuple[Change, ...]) -> Cause:
    # What ends its worker is told as that, new or back.
    poison = group.error_type == WORKER_LOST
    key = f"{group.fingerprint} {group.regressions}" + (f" {group.failures}" if poison else "")
    return Cause(Kind.POISON_PILL if poison else kind, key, changes, fingerprint=group.fingerprint)
