"""What a row is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tests.benchmarks.peers.peers import Peer
from tests.benchmarks.peers.running import Stage


@dataclass(frozen=True)
class Figure:
    """One of the figures of a row.

    Attributes:
      what: What it is, with its unit.
      more: Whether more of it is better.
      digits: Of what is printed.
      compared: Whether ours is set beside each one's; not where some have next to none of it.
    """

    what: str
    more: bool = True
    digits: int = 0
    compared: bool = True


#: What a job costs. Some do in Postgres, and others in Redis, what others do in the worker: only all of it compares.
COSTS = {
    "worker": Figure("processor time of the worker a job, µs; the servers' is not in it", more=False),
    "redis": Figure("Redis', µs", more=False, compared=False),
    "postgres": Figure("Postgres', µs", more=False, compared=False),
    "all": Figure("of all three, µs", more=False),
}


@dataclass(frozen=True)
class Row:
    """What is measured of several peers in turn.

    Attributes:
      title: In words; ``{count}`` is how many jobs.
      peers: Whom of.
      count: Jobs of a run.
      figures: What a run gives, by name.
      measure: One run of so many jobs; raises ``Incomplete`` where one of them did not run.
      synced: Whether Postgres syncs to disk, as by default.
      extra: Measured only when it is asked for.
    """

    title: str
    peers: tuple[Peer, ...]
    count: int
    figures: Mapping[str, Figure]
    measure: Callable[[Stage, int], dict[str, float]]
    synced: bool = False
    extra: bool = False
