"""From what the jobs noted to figures: whether each ran, how many a second, medians and ratios."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any


class Incomplete(Exception):
    """Raised when jobs did not run, or what did so is not what was sent."""


@dataclass(frozen=True)
class Note:
    """That a job ran.

    Attributes:
      number: Which.
      process: Where.
      at: When, in nanoseconds of the machine's monotonic clock.
    """

    number: int
    process: int
    at: int


def read(lines: Iterable[str | bytes]) -> list[Note]:
    """Return the notes of such lines, by time."""
    return sorted((Note(*map(int, line.split())) for line in lines), key=lambda note: note.at)


def check(ran: Collection[int], sent: Collection[int], *, all_of_them: bool = True) -> int:
    """Return how many jobs ran more than once.

    Arguments:
      ran: Their numbers, of each execution.
      sent: The numbers that were sent.
      all_of_them: Whether all must have run, or others may be waiting yet.

    Raises:
      Incomplete: When one did not run that must have, or one ran that nobody sent.
    """
    once, wanted = set(ran), set(sent)
    if strange := once - wanted:
        raise Incomplete(f"{len(strange)} jobs ran that nobody sent, such as {min(strange)}")
    if all_of_them and (missing := wanted - once):
        raise Incomplete(f"{len(missing)} of {len(wanted)} jobs never ran, such as {min(missing)}")
    return len(ran) - len(once)


def first_runs(notes: Iterable[Note]) -> list[Note]:
    """Return the first execution of each job: what runs again is work, and no job more."""
    first: dict[int, Note] = {}
    for note in notes:
        first.setdefault(note.number, note)
    return list(first.values())


def rate(notes: Sequence[Note], *, until: int | None = None) -> float:
    """Return jobs a second, each counted once, from the first that ran to the last, or to ``until`` in nanoseconds."""
    runs = first_runs(notes)
    return (len(runs) - 1) / (((until or runs[-1].at) - runs[0].at) / 1e9)


def rate_of_all(notes: Sequence[Note], processes: int, *, until: int | None = None) -> float:
    """Return jobs a second from when the last of so many processes had its first job, else as :func:`rate`.

    Raises:
      Incomplete: When fewer worked.
    """
    first: dict[int, int] = {}
    for note in notes:
        first.setdefault(note.process, note.at)
    if len(first) < processes:
        raise Incomplete(f"{len(first)} of {processes} processes had a job")
    since = max(first.values())
    return rate([note for note in first_runs(notes) if note.at >= since], until=until)


def costs(before: Mapping[str, float], after: Mapping[str, float], jobs: int) -> dict[str, float]:
    """Return the microseconds of processor time a job, of each that spent some and, where all are known, of all."""
    # Of what has ended, time is known to a hundredth of a second, which may round to less than there was before.
    each = {who: max(0.0, after[who] - before[who]) / jobs * 1e6 for who in after}
    return {**each, "all": sum(each.values())} if "postgres" in each else each


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that is at least as large as this share of all."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))]


def label(peer: str, measured: Mapping[str, Any]) -> str:
    """Return what tables and charts call a peer: its name, and how many jobs it had where those are fewer.

    Arguments:
      peer: Its name.
      measured: The row, as JSON has it.
    """
    fewer = measured.get("fewer", {}).get(peer)
    return peer if fewer is None else f"{peer} ({fewer:,} jobs)"


@dataclass(frozen=True)
class Summary:
    """A figure of one peer over all rounds, and ours as a multiple of it, where there is ours."""

    median: float
    least: float
    most: float
    ratio: float | None


def summarise(runs: Mapping[str, Sequence[Mapping[str, float]]], figure: str, ours: str) -> dict[str, Summary]:
    """Return a summary of a figure for each peer that has it."""
    values = {name: [run[figure] for run in of_peer if figure in run] for name, of_peer in runs.items()}
    medians = {name: median(found) for name, found in values.items() if found}
    base = medians.get(ours)
    return {
        name: Summary(
            middle, min(values[name]), max(values[name]), base / middle if base is not None and middle else None
        )
        for name, middle in medians.items()
    }
