"""What processes have counted for metrics, as they told it to Redis."""

from __future__ import annotations

import json

import redis

from middleware.metric_families import FAMILIES, VERSION, Family
from worker.queue_admin.keys import answer, asking

#: The values of a series' labels, and its own: see :attr:`Family.values`.
Counted = dict[tuple[str, ...], tuple[int, ...]]


def counted(client: redis.Redis, *, namespace: str = "dramatiq") -> dict[str, Counted]:
    """Return every series of each family, by the family's name.

    What it costs depends on the number of series, which is bounded.

    Raises:
      ConnectionClosed: For any error of Redis.
    """
    with asking(), client.pipeline(transaction=False) as pipeline:
        for family in FAMILIES:
            pipeline.hgetall(f"{namespace}:__dramaturg__.metrics.{VERSION}.{family.name}")
        found = answer(pipeline.execute())
    return {family.name: _read(family, series) for family, series in zip(FAMILIES, found, strict=True)}


def _read(family: Family, found: dict[bytes, bytes]) -> Counted:
    """Return the series of a family; what is none of ours is left out."""
    series: Counted = {}
    for field, value in found.items():
        try:
            labels = json.loads(field)
            _, *values = (int(each) for each in value.split())
        except ValueError:
            continue
        fits = isinstance(labels, list) and len(labels) == len(family.labels) and len(values) == family.values
        if fits and all(isinstance(label, str) for label in labels):
            series[tuple(labels)] = tuple(values)
    return series
