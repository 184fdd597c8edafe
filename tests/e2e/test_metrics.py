"""``/metrics`` while real worker processes fail, held against what happened."""

from __future__ import annotations

import signal
import urllib.request
from typing import Any

from dramatiq import Message

from tests.e2e import measured
from tests.e2e.deployment import Deployment
from tests.scraped import Scraped, scraped
from tests.waiting import eventually

QUEUE, NAME = "attribution", "tests.e2e.measured."
GOOD, BAD = f"{NAME}good", f"{NAME}bad"


class Scraper:
    """Scrapes a process of ``worker metrics``."""

    def __init__(self, deployment: Deployment) -> None:
        log = deployment.start("worker", "metrics", "--port", "0")
        eventually(lambda: "/metrics\n" in log.read_text(), seconds=60)
        self._url = log.read_text().split()[-1]

    def __call__(self) -> Scraped:
        with urllib.request.urlopen(self._url, timeout=30) as answer:  # noqa: S310
            return scraped(answer.read())

    def until(self, pending: int, **jobs: int) -> Scraped:
        """Scrape until there are so many jobs of each outcome, and rows that are pending, and no more."""
        found: list[Scraped] = []

        def are_there() -> bool:
            found.append(self())
            jobs_are = all(found[-1].sum("jobs_total", outcome=name) == count for name, count in jobs.items())
            # What Postgres tells may be older than what Redis does.
            return jobs_are and found[-1]("failed_jobs", status="pending") == pending

        eventually(are_there, seconds=60)
        return found[-1]


def start(deployment: Deployment) -> Any:
    deployment.start("dramatiq", "tests.e2e.measured", "--processes", "2", "--threads", "2")
    return deployment.processes[-1]


def test_what_is_scraped_is_what_happened(deployment: Deployment) -> None:
    scrape, worker = Scraper(deployment), start(deployment)
    # What there may be to count is there before it happens, so that Prometheus sees the first of it, too.
    eventually(lambda: scrape()("jobs_total", queue=QUEUE, actor=BAD, outcome="failed") == 0, seconds=60)
    assert scrape()("quarantines_total", queue=QUEUE) == 0
    for n in range(20):
        deployment.send(measured.good, n=n)
    for n in range(3):
        deployment.broker.enqueue(measured.good.message(n=n), delay=1)
    for n in range(4):
        deployment.send(measured.bad, what=str(n))
    deployment.broker.enqueue(Message(QUEUE, "nobody.knows", (), {}, {}))
    deployment.client.hset(f"dramatiq:{QUEUE}.msgs", "none", "{")
    deployment.client.rpush(f"dramatiq:{QUEUE}", "none")

    found = scrape.until(6, succeeded=23, failed=6, retried=8)
    assert found.more_than_none("jobs_total") == {
        (GOOD, "succeeded", QUEUE): 23,
        (BAD, "failed", QUEUE): 4,
        (BAD, "retried", QUEUE): 8,
        ("(unknown)", "failed", QUEUE): 2,
    }
    assert found.more_than_none("job_errors_total") == {
        ("validation_error", "failed", QUEUE): 4,
        ("validation_error", "retried", QUEUE): 8,
        ("unknown_actor", "failed", QUEUE): 1,
        ("undecodable", "failed", QUEUE): 1,
    }
    for name in ("job_duration_seconds", "job_wait_seconds"):
        assert found.more_than_none(f"{name}_count") == {(GOOD, QUEUE): 23, (BAD, QUEUE): 12}
        assert found(f"{name}_bucket", queue=QUEUE, actor=GOOD, le="+Inf") == 23
        assert (found(f"{name}_sum", queue=QUEUE, actor=GOOD) or 0) > 0
    assert len(deployment.failures()) == 6
    assert (found("failed_jobs_oldest_pending_age_seconds") or 0) > 0
    assert found("workers", state="running") == 2
    assert (found("worker_threads"), found("queue_consumers", queue=QUEUE)) == (4, 2)
    assert found.sum("queue_messages") == 0
    assert (found("up", part="redis"), found("up", part="postgres")) == (1, 1)

    # One of two is mended.
    deployment.client.sadd(measured.MENDED, "0")
    ids = [str(row["id"]) for row in deployment.failures() if row["task_kwargs"] in ({"what": "0"}, {"what": "1"})]
    done = deployment.worker("failed", "retry", *ids, "--yes", "--module", "tests.e2e.measured")
    assert done.returncode == 3, done.stdout + done.stderr
    # What was retried before the replay fails again as often.
    found = scrape.until(5, succeeded=24, failed=7, retried=10)
    assert found.more_than_none("replays_total") == {("succeeded", QUEUE): 1, ("failed", QUEUE): 1}
    assert found("failed_jobs", status="resolved") == 1

    # Whoever ends well takes nothing with him, and whoever begins adds to what there is.
    for n in range(10):
        deployment.send(measured.good, n=n)
    eventually(lambda: deployment.waiting(QUEUE) == 0, seconds=30)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(30) == 0
    found = scrape.until(5, succeeded=34, failed=7, retried=10)
    eventually(lambda: scrape()("queue_consumers", queue=QUEUE) == 0, seconds=30)
    start(deployment)
    deployment.send(measured.good, n=0)
    found = scrape.until(5, succeeded=35, failed=7, retried=10)
    assert found("job_wait_seconds_count", queue=QUEUE, actor=GOOD) == 23 + 10 + 1
