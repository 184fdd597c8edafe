"""What a check says."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """How bad it is; an error breaks a promise, a warning may."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. Never holds a secret.

    Arguments:
      name: What was looked at, as programs know it: ``redis.eviction``.
      status: How bad it is.
      found: What there is, for people.
      advice: What to do about it: a command, a statement or a setting. Empty where all is well.
    """

    name: str
    status: Status
    found: str
    advice: str = ""


def ok(name: str, found: str) -> Finding:
    """Return a finding that all is well."""
    return Finding(name, Status.OK, found)


def warning(name: str, found: str, advice: str) -> Finding:
    """Return a finding that should be looked into."""
    return Finding(name, Status.WARNING, found, advice)


def error(name: str, found: str, advice: str) -> Finding:
    """Return a finding that must be mended before a deploy."""
    return Finding(name, Status.ERROR, found, advice)


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """Return ``findings`` with errors first, then warnings, else in their order."""
    order = [Status.ERROR, Status.WARNING, Status.OK]
    return sorted(findings, key=lambda finding: order.index(finding.status))
