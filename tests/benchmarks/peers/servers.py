"""The servers of a row, and for each run a database of its own with what rows work on, and an empty Redis."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import redis

from tests.benchmarks.peers.processes import processor_time_below
from tests.servers import Cluster, Database, running_cluster, running_redis
from worker import migrate

#: Postgres as it is by default.
SYNCED = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}
TENANT = "00000000-0000-0000-0000-00000000000a"

_TABLES = """
CREATE TABLE bench_prices (
    tenant_id uuid NOT NULL, id integer NOT NULL, cents integer NOT NULL, PRIMARY KEY (tenant_id, id)
);
CREATE TABLE bench_effects (tenant_id uuid NOT NULL, number integer NOT NULL, cents integer NOT NULL);
GRANT SELECT ON bench_prices TO app_user;
GRANT INSERT ON bench_effects TO app_user;
"""
_POLICY = """
ALTER TABLE {table} ENABLE ROW LEVEL SECURITY;
ALTER TABLE {table} FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON {table} USING (tenant_id = NULLIF(current_setting('app.current_tenant_id', true), '')::uuid);
"""


@dataclass(frozen=True)
class Servers:
    """A Postgres with a database to clone, and a Redis."""

    cluster: Cluster
    template: str
    redis_url: str

    def postgres_seconds(self) -> float | None:
        """Return the processor seconds of Postgres by now, of all its processes; None where it is not here."""
        with psycopg.connect(self.cluster.admin_url) as admin:
            (folder,) = admin.execute("SHOW data_directory").fetchone() or ("",)
        try:
            process, *_ = (Path(folder) / "postmaster.pid").read_text().split()
            return processor_time_below(int(process))
        except OSError:
            return None

    @contextmanager
    def emptied(self) -> Iterator[Database]:
        """Give a new database, and a Redis in which nothing is, and nothing counted."""
        with redis.Redis.from_url(self.redis_url) as client:
            client.flushall()
            client.config_resetstat()
        with self.cluster.database(self.template) as database:
            yield database

    def versions(self) -> dict[str, str]:
        """Return theirs."""
        with psycopg.connect(self.cluster.admin_url) as admin:
            (postgres,) = admin.execute("SHOW server_version").fetchone() or ("",)
        with redis.Redis.from_url(self.redis_url) as client:
            about = client.info("server")
        name = "valkey" if "valkey_version" in about else "redis"
        return {"postgres": str(postgres), name: str(about[f"{name}_version"])}


@contextmanager
def running(*, synced: bool, settings: Mapping[str, str] | None = None) -> Iterator[Servers]:
    """Start both.

    Arguments:
      synced: Whether Postgres syncs to disk, as by default; Redis keeps no log.
      settings: More of Postgres'.
    """
    chosen = {**(SYNCED if synced else {}), **(settings or {})}
    with running_cluster(chosen) as cluster, running_redis() as redis_url, cluster.database() as database:
        migrate.upgrade(database.owner_url)
        with psycopg.connect(database.owner_url) as owner:
            owner.execute(_TABLES)
            for number in range(100):
                owner.execute("INSERT INTO bench_prices VALUES (%s, %s, %s)", [TENANT, number, number])
            for table in ("bench_prices", "bench_effects"):
                owner.execute(_POLICY.format(table=table))
        yield Servers(cluster, database.name, redis_url)
