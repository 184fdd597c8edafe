"""Whether something stays as it is: what it was at first, once everything has started, against what it is at last."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from tests.soak.sampling import ProcessSample, Sample

MIB = 1024 * 1024
#: A time and what was seen then.
Point = tuple[float, float]
#: Of a series, the parts that are compared: its second sixth, when caches and pools have filled, and its last.
_FIRST, _LAST = (1 / 6, 2 / 6), (5 / 6, 1.0)
#: Points that each of these must have.
POINTS_AT_LEAST = 3


@dataclass(frozen=True, slots=True)
class Tolerance:
    """By how much something may grow and still be flat: a share of what it was, and so much beside."""

    share: float
    beside: float

    def allows(self, first: float, last: float) -> bool:
        """Tell whether it does."""
        return last <= first * (1 + self.share) + self.beside


#: Of a process that lives on; and of those that come one after the other, which differ by where memory was free.
MEMORY, MEMORY_OF_MANY = Tolerance(0.03, 2 * MIB), Tolerance(0.08, 4 * MIB)
THREADS, FILES = Tolerance(0, 1), Tolerance(0.1, 2)
#: Of what a server has; the rest of ``counts`` goes up and down with the load.
COUNTS = {
    "connections to Postgres": Tolerance(0.1, 4),
    "connections to Redis": Tolerance(0.1, 4),
    "memory of Redis": Tolerance(0.1, 2 * MIB),
    "size of the database": Tolerance(0.1, 8 * MIB),
    "failed jobs": Tolerance(0.5, 50),
    "waiting": Tolerance(1, 20),
    "held": Tolerance(1, 20),
    "delayed": Tolerance(0.5, 40),
    "spooled": Tolerance(0, 0),
}
TABLES, KEYS = Tolerance(0.25, 50), Tolerance(0.25, 20)


@dataclass(frozen=True, slots=True)
class Judged:
    """What a series was at first and at last, by medians, and whether that is flat; None where it is too short."""

    what: str
    first: float
    last: float
    flat: bool | None


def judge(what: str, series: Sequence[Point], tolerance: Tolerance) -> Judged:
    """Compare the second sixth of a series with its last one."""
    if not series:
        return Judged(what, 0, 0, None)
    begin, end = series[0][0], series[-1][0]
    parts = [
        [value for at, value in series if begin + low * (end - begin) <= at <= begin + high * (end - begin)]
        for low, high in (_FIRST, _LAST)
    ]
    first, last = (median(part) if part else 0.0 for part in parts)
    if min(map(len, parts)) < POINTS_AT_LEAST:
        return Judged(what, first, last, None)
    return Judged(what, first, last, tolerance.allows(first, last))


def processes(samples: Sequence[Sample], entry: str, role: str, settled: float) -> list[tuple[float, ProcessSample]]:
    """Return what there is of a role in an entry, and when, of the largest of its processes if there are several.

    Arguments:
      settled: Seconds after its start from which a process counts.
    """
    found = []
    for sample in samples:
        of_role = [p for p in sample.processes if (p.entry, p.role) == (entry, role) and p.age >= settled]
        if of_role:
            found.append((sample.at, max(of_role, key=lambda process: process.rss)))
    return found


def generations(samples: Sequence[Sample], entry: str, role: str) -> dict[int, list[tuple[float, ProcessSample]]]:
    """Return the same of each process that there was, by its id."""
    found: dict[int, list[tuple[float, ProcessSample]]] = {}
    for sample in samples:
        for process in sample.processes:
            if (process.entry, process.role) == (entry, role):
                found.setdefault(process.pid, []).append((sample.at, process))
    return found


def longest(generations: Iterable[list[tuple[float, ProcessSample]]]) -> list[tuple[float, ProcessSample]]:
    """Return what there is of the process that lived the longest."""
    return max(generations, key=lambda each: each[-1][0] - each[0][0], default=[])


def judge_processes(seen: Sequence[tuple[float, ProcessSample]]) -> Iterator[Judged]:
    """Judge memory, threads and open files."""
    memory = MEMORY if len({process.pid for _, process in seen}) == 1 else MEMORY_OF_MANY
    of: dict[str, tuple[Callable[[ProcessSample], float], Tolerance]] = {
        "memory": (lambda process: process.rss, memory),
        "threads": (lambda process: process.threads, THREADS),
        "files": (lambda process: process.files, FILES),
    }
    for what, (value, tolerance) in of.items():
        yield judge(what, [(at, value(process)) for at, process in seen], tolerance)


def judge_servers(samples: Sequence[Sample]) -> Iterator[Judged]:
    """Judge what servers hold."""
    for what, tolerance in COUNTS.items():
        yield judge(what, [(sample.at, sample.counts[what]) for sample in samples], tolerance)


def judge_tables(samples: Sequence[Sample], but: Iterable[str]) -> Iterator[Judged]:
    """Judge rows of tables and kinds of keys, those excepted that must grow."""
    seldom, spared = [sample for sample in samples if sample.tables], tuple(but)
    for what, tolerance in (("tables", TABLES), ("keys", KEYS)):
        for name in sorted({name for sample in seldom for name in getattr(sample, what)}):
            if not name.startswith(spared):
                yield judge(name, [(s.at, getattr(s, what).get(name, 0)) for s in seldom], tolerance)
