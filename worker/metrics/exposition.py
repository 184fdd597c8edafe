"""All of it, in the words of Prometheus or OpenMetrics, whatever of it can be had in time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from importlib.metadata import PackageNotFoundError, version
from typing import Final

import redis
from loguru import logger
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from worker.metrics.families import gauge
from worker.metrics.latest import Latest, Made
from worker.metrics.of_postgres import of_postgres
from worker.metrics.of_redis import of_redis
from worker.settings import Settings

#: Seconds for which an answer holds, and that Redis and Postgres have to give theirs, both at once: Prometheus waits
#: for ten, if nobody says otherwise.
SHARED_FOR, WITHIN = 4.0, 5.0
#: Seconds between two lines of the log about the same trouble.
ALARM_EVERY: Final = 60.0

Part = Latest[list[Metric]]


class Exposition:
    """Answers whoever scrapes, and any number of them with what one of them cost.

    Arguments:
      parts: What finds out what, by name.
      within: Seconds that all of them have.
    """

    def __init__(self, parts: Mapping[str, Callable[[], list[Metric]]], *, within: float = WITHIN) -> None:
        self._parts: dict[str, Part] = {name: Latest(make, SHARED_FOR) for name, make in parts.items()}
        self._within = within
        self._alarmed: dict[str, float] = {}

    def render(self, accept: str | None = None) -> tuple[bytes, str]:
        """Return the text, and its content type, which is what ``accept`` prefers of the two that there are.

        A part that is not there in time is left out, and ``dramaturg_up`` says so. Raises nothing.
        """
        # Without a header, and from whoever takes anything, what every Prometheus reads.
        encode, content_type = choose_encoder(accept or "")
        return encode(_Families(self._collect())), content_type

    def _collect(self) -> list[Metric]:
        until = time.monotonic() + self._within
        asked = {name: part.ask() for name, part in self._parts.items()}
        found = {name: self._answer(name, future, until) for name, future in asked.items()}
        up = {name: made is not None and made.error is None for name, made in found.items()}
        families: list[Metric] = [
            gauge("build_info", "Always 1; the version is what it says.", ((_version(),), 1.0), labels=("version",)),
            gauge(
                "up",
                f"1 where a server answered, 0 where it did not within {self._within:g} seconds; then what it would "
                "tell is missing.",
                *(((name,), float(is_up)) for name, is_up in up.items()),
                labels=("part",),
            ),
            gauge(
                "collect_duration_seconds",
                "How long it took to ask.",
                *(((name,), made.took) for name, made in found.items() if made is not None),
                labels=("part",),
            ),
        ]
        for made in found.values():
            families += (made and made.value) or []
        return families

    def _answer(self, name: str, future: Future[Made[list[Metric]]], until: float) -> Made[list[Metric]] | None:
        try:
            made = future.result(max(0.0, until - time.monotonic()))
        except TimeoutError:
            self._alarm(name, f"no answer within {self._within:g} seconds")
            return None
        if made.error is not None:
            # Not its text: Postgres quotes what it does not take.
            self._alarm(name, type(made.error).__name__)
        return made

    def _alarm(self, name: str, what: str) -> None:
        now = time.monotonic()
        if now - self._alarmed.get(name, float("-inf")) > ALARM_EVERY:
            self._alarmed[name] = now
            logger.warning("metrics lack what {} would tell: {}", name, what)


class _Families(Collector):
    """What prometheus_client writes out."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families


def make_exposition(settings: Settings, client: redis.Redis) -> Exposition:
    """Return what answers for a deployment.

    Arguments:
      settings: Of it; ``db.session`` must have been configured.
      client: To Redis, with a short time to answer.
    """
    return Exposition({"redis": lambda: of_redis(client, settings), "postgres": of_postgres})


def _version() -> str:
    try:
        return version("dramaturg")
    except PackageNotFoundError:
        # It runs from a checkout that nobody installed.
        return "unknown"
