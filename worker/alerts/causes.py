"""Why somebody is alerted, and what is to be remembered once he is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final
from uuid import UUID, uuid5


class Kind(StrEnum):
    """What an alert is about: its ``event``. Not ``type``, which Mattermost takes for that of a post of its own."""

    SPOOL_IN_USE = "spool_in_use"
    FAILURE_RATE = "failure_rate"
    POISON_PILL = "poison_pill"
    REGRESSED_GROUP = "regressed_group"
    NEW_GROUP = "new_group"
    #: More than one of the others.
    BUNDLE = "bundle"
    #: Sent by hand.
    TEST = "test"


@dataclass(frozen=True, slots=True)
class Change:
    """What is to be remembered: a field of one of the hashes of :mod:`worker.alerts.state`; None forgets it."""

    part: str
    name: str
    value: str | None


@dataclass(frozen=True, slots=True)
class Cause:
    """Something that somebody is to be told.

    Attributes:
      key: What makes it this cause and no other of its kind.
      changes: What is remembered in the step that sends its alert, so that it is told once.
      over: Whether it tells that what was told before is over; None where nothing of the kind is told.
      fingerprint: Of the group that it is about.
      facts: What is told beside what the group's own row says.
    """

    kind: Kind
    key: str
    changes: tuple[Change, ...]
    over: bool | None = None
    fingerprint: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> UUID:
        """The alert's: the same, whoever finds this cause, and however often."""
        return uuid5(_NAMESPACE, f"{self.kind} {self.over} {self.key}")


_NAMESPACE: Final = UUID("1cf7a6f5-4f0e-5d35-8f64-0c8a5b7d2d11")
