"""How families of metrics are made for prometheus_client."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from middleware.metric_families import FAMILIES, Family
from worker.live.counted import Counted

PREFIX: Final = "dramaturg_"


def gauge(
    name: str, said: str, *series: tuple[tuple[str, ...], float], labels: tuple[str, ...] = ()
) -> GaugeMetricFamily:
    """Return a gauge.

    Arguments:
      name: Without the prefix.
      said: What it is, in a sentence.
      series: The values of the labels, and its own, of each series.
      labels: Their names.
    """
    family = GaugeMetricFamily(PREFIX + name, said, labels=labels)
    for values, value in series:
        family.add_metric([_clean(each) for each in values], value)
    return family


def counters(found: dict[str, Counted]) -> Iterator[Metric]:
    """Give the families of what processes have counted, also those of which there is nothing."""
    for family in FAMILIES:
        series = sorted(found.get(family.name, {}).items())
        yield _histogram(family, series) if family.bounds else _counter(family, series)


def _counter(family: Family, series: Iterable[tuple[tuple[str, ...], tuple[int, ...]]]) -> Metric:
    made = CounterMetricFamily(PREFIX + family.name, family.help, labels=family.labels)
    for labels, (value,) in series:
        made.add_metric([_clean(each) for each in labels], value)
    return made


def _histogram(family: Family, series: Iterable[tuple[tuple[str, ...], tuple[int, ...]]]) -> Metric:
    made = HistogramMetricFamily(PREFIX + family.name, family.help, labels=family.labels)
    bounds = [*(f"{bound:g}" if bound % 1 else f"{bound:.1f}" for bound in family.bounds), "+Inf"]
    for labels, (*buckets, sum_in_microseconds) in series:
        made.add_metric(
            [_clean(each) for each in labels],
            list(zip(bounds, accumulate(buckets), strict=True)),
            sum_in_microseconds / 1e6,
        )
    return made


def _clean(label: str) -> str:
    # A lone surrogate, which JSON may hold, cannot be written.
    return label.encode("utf-8", "replace").decode()
