"""What a scrape of /metrics says, as Prometheus reads it."""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families


@dataclass(frozen=True)
class Scraped:
    """The samples of one scrape, by name and labels."""

    samples: dict[tuple[str, frozenset[tuple[str, str]]], float]

    def __call__(self, name: str, **labels: str) -> float | None:
        """Return one sample; None where there is none."""
        return self.samples.get((f"dramaturg_{name}", frozenset(labels.items())))

    def sum(self, name: str, **labels: str) -> float:
        """Return the sum of all samples of a name that have these labels among theirs."""
        asked = set(labels.items())
        return sum(v for (n, found), v in self.samples.items() if n == f"dramaturg_{name}" and asked <= found)

    def more_than_none(self, name: str) -> dict[tuple[str, ...], float]:
        """Return the samples of a name that are not 0, by the values of their labels in the order of their names."""
        return {
            tuple(value for _, value in sorted(labels)): sample
            for (n, labels), sample in self.samples.items()
            if n == f"dramaturg_{name}" and sample
        }

    @property
    def names(self) -> set[str]:
        """Names of samples."""
        return {name for name, _ in self.samples}


def scraped(text: bytes | str) -> Scraped:
    """Read a scrape."""
    text = text.decode() if isinstance(text, bytes) else text
    samples: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in samples, f"{key} is there twice"
            samples[key] = sample.value
    return Scraped(samples)
