"""What a job costs Redis and Postgres, by command and by statement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg
import redis


@dataclass(frozen=True)
class Cost:
    """Of one command or statement.

    Attributes:
      what: Which.
      calls: How many of it a job.
      each: Microseconds of one, on the server.
    """

    what: str
    calls: float
    each: float

    @property
    def a_job(self) -> float:
        """Microseconds a job."""
        return self.calls * self.each


def of_redis(before: dict[str, Any], after: dict[str, Any], jobs: int) -> list[Cost]:
    """Return the costs between two answers of ``INFO commandstats``, the largest first.

    What a script calls is counted in the script, and beside it.
    """
    found = []
    for name, stats in after.items():
        earlier = before.get(name, {"calls": 0, "usec": 0})
        calls, spent = stats["calls"] - earlier["calls"], stats["usec"] - earlier["usec"]
        if calls and name.removeprefix("cmdstat_") not in ("info", "monitor"):
            found.append(Cost(name.removeprefix("cmdstat_"), calls / jobs, spent / calls))
    return sorted(found, key=lambda cost: cost.a_job, reverse=True)


def commandstats(url: str) -> dict[str, Any]:
    """Ask for them."""
    with redis.Redis.from_url(url) as client:
        found: dict[str, Any] = client.info("commandstats")
    return found


def of_postgres(url: str, jobs: int) -> list[Cost]:
    """Return what ``pg_stat_statements`` counted in a database, the most costly first."""
    with psycopg.connect(url) as admin:
        rows = admin.execute(
            """
            SELECT regexp_replace(query, '\\s+', ' ', 'g'), sum(calls)::float8, sum(total_exec_time)::float8 * 1000
            FROM pg_stat_statements WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
            GROUP BY 1
            """
        ).fetchall()
    found = [Cost(query, calls / jobs, spent / calls) for query, calls, spent in rows]
    return sorted(found, key=lambda cost: cost.a_job, reverse=True)


def forget_statements(url: str) -> None:
    """Have Postgres count anew."""
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
        admin.execute("SELECT pg_stat_statements_reset()")
