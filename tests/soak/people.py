"""Those who look after it: operators, who replay, resolve and abandon, and those who look at the console."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.client import HTTPException
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import psycopg

from db.failed import Filter, abandon, resolve
from db.replays import runs
from db.replays.runs import ReplaySettings
from db.session import operator_transaction
from tests.soak.world import CONSOLES, World
from worker.queues import Queue

#: Seconds for which a failure is left to be looked at, and then to be replayed.
LEFT, OLD = 10, 40
#: Every failure is to be sent: none stops it.
SETTINGS = ReplaySettings(ramp=(5, 20, 50), threshold=1.0)
PAGES = (
    *("/", "/failures", "/failures?status=all&queue=llm", "/groups", "/replays", "/tenants", "/audit"),
    *("/api/v1/failures?limit=50", "/api/v1/groups", "/api/v1/queues", "/api/v1/workers", "/api/v1/replays"),
    *("/health/live", "/health/ready"),
    *(f"/health/worker?queue={queue.value}&timeout=10" for queue in Queue),
)


class People:
    """Threads that go on until :meth:`leave`.

    Arguments:
      world: What they look after.

    Attributes:
      looks: What the console answered, by status; ``down`` while it is restarted.
      done: What operators did.
      errors: What went wrong with them.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._stop = threading.Event()
        self.looks: Counter[str] = Counter()
        self.done: Counter[str] = Counter()
        self.errors: list[str] = []
        jobs: list[Callable[[], None]] = [self._operate, self._pass_time, *(self._view(n) for n in range(3))]
        self._threads = [threading.Thread(target=self._guarded, args=(job,), daemon=True) for job in jobs]

    def come(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def leave(self) -> None:
        """Stop, and wait until all have."""
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _guarded(self, job: Callable[[], None]) -> None:
        while not self._stop.is_set():
            try:
                job()
            except Exception as e:  # noqa: BLE001 - it is told at the end, and they go on
                self.errors.append(f"{type(e).__name__}: {e}"[:300])
                self._stop.wait(1)

    def _operate(self) -> None:
        for turn in range(1_000_000):
            if self._stop.wait(5):
                return
            now = datetime.now(UTC)
            pending = Filter(status=("pending",), until=now - timedelta(seconds=LEFT))
            old = replace(pending, until=now - timedelta(seconds=OLD))
            if turn % 2 == 0:
                self._replay(replace(pending, exception=("ToBeMended",)))
            if turn % 18 == 3:
                self._replay(replace(pending, error_type=("upstream_error", "timeout", "validation_error")))
            where = replace(old, error_type=("validation_error", "expired", "budget_exceeded"))
            self.done["resolved"] += resolve(operator_transaction, where, by="ada", note="looked at").count
            self.done["abandoned"] += abandon(operator_transaction, old, by="ada", reason="nothing to be done").count

    def _replay(self, where: Filter) -> None:
        with operator_transaction() as session:
            runs.create(session, where, SETTINGS, by="ada")
        self.done["replays"] += 1

    def _pass_time(self) -> None:
        """Have a month go by each minute, for what is kept for a month and more whatever the rules say."""
        while not self._stop.wait(60):
            with psycopg.connect(self._world.superuser()) as connection:
                for table, column in (("worker_once", "recorded_at"), ("attribution_runs", "finished_at")):
                    connection.execute(
                        f"UPDATE {table} SET {column} = {column} - interval '100 days'"
                        f" WHERE {column} BETWEEN now() - interval '50 days' AND now() - interval '1 minute'".encode()
                    )

    def _view(self, n: int) -> Callable[[], None]:
        rng = random.Random(n)  # noqa: S311 - which pages

        def view() -> None:
            while not self._stop.wait(rng.uniform(0.5, 2.5)):
                base = f"http://127.0.0.1:{self._world.ports[rng.choice(CONSOLES)]}"
                self._look(base, rng.choice(PAGES))
                found = self._look(base, "/api/v1/failures?limit=1&status=all")
                with suppress(ValueError, LookupError, TypeError):
                    self._look(base, f"/failures/{json.loads(found)['failures'][0]['id']}")

        return view

    def _look(self, base: str, path: str) -> bytes:
        try:
            asked = Request(base + path, headers={"X-Live": "1"})  # noqa: S310 - our own
            with urlopen(asked, timeout=30) as answer:  # noqa: S310 - our own
                self.looks[str(answer.status)] += 1
                return bytes(answer.read())
        except HTTPError as e:
            self.looks[str(e.code)] += 1
            self._note(path, e.code)
        except (OSError, HTTPException):
            self.looks["down"] += 1
        return b""

    def _note(self, path: str, status: int) -> None:
        # A failure that has gone, and a queue whose workers are restarted, are no news.
        if status >= 500 and not path.startswith("/health/"):
            self.errors.append(f"{status} at {path}")


def wait_for_replays(world: World, seconds: float) -> list[str]:
    """Wait until no replay is under way, and return those that are still."""
    until = time.monotonic() + seconds
    while True:
        found = world.query("SELECT id, state FROM worker_replays WHERE finished_at IS NULL")
        if not found or time.monotonic() > until:
            return [f"{row['id']} is {row['state']}" for row in found]
        time.sleep(1)
