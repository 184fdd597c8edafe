from __future__ import annotations

import os

# Before anything of ours is imported: settings are read at import.
os.environ.setdefault("REDIS_URL", "stub://")

from collections.abc import Generator, Iterator

import pytest

from tests.servers import Cluster, Database, running_cluster, running_redis


def pytest_xdist_auto_num_workers() -> int:
    """Two processes, each with servers of its own, because most tests wait; one where they are to share a server."""
    return 0 if os.environ.get("TEST_REDIS_URL") or os.environ.get("TEST_DATABASE_URL") else 2


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Write lone surrogates, which some tests send and Dramatiq logs, so that the other process can send its report."""
    report = yield
    report.sections = [
        (name, text.encode("utf-8", "backslashreplace").decode("utf-8")) for name, text in report.sections
    ]
    return report


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A Postgres server."""
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def template(cluster: Cluster) -> Iterator[Database]:
    """A migrated database, which tests clone."""
    from worker import migrate

    with cluster.database() as database:
        migrate.upgrade(database.owner_url)
        yield database


@pytest.fixture
def empty_database(cluster: Cluster) -> Iterator[Database]:
    """A database with nothing in it."""
    with cluster.database() as database:
        yield database


@pytest.fixture
def database(cluster: Cluster, template: Database) -> Iterator[Database]:
    """A migrated database of the test's own, with ``db.session`` configured on it as a deployment would."""
    from db import session

    with cluster.database(template.name) as database:
        session.configure(database.worker_url, operator_database_url=database.operator_url)
        try:
            yield database
        finally:
            session.dispose()


@pytest.fixture(scope="session")
def redis_server() -> Iterator[str]:
    """A Redis-compatible server's URL."""
    with running_redis() as url:
        yield url


@pytest.fixture
def redis_url(redis_server: str) -> Iterator[str]:
    """A Redis-compatible server's URL, emptied."""
    import redis

    with redis.Redis.from_url(redis_server) as client:
        client.flushall()
        yield redis_server
        client.flushall()
