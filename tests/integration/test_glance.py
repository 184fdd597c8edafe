"""Whether there is work, asked of Postgres without SQLAlchemy: it may be wrong in one direction only."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Thread

import psycopg
import pytest
from psycopg.rows import TupleRow

from db import configuration, glance
from middleware.lossless_broker import LosslessBroker
from middleware.relay_outbox import _ANYTHING
from tests.servers import Database
from tests.waiting import eventually
from worker.broker import make_broker
from worker.replay.replayer import _MAY_HAVE_WORK, Replayer
from worker.settings import Settings

ROW = """
    INSERT INTO worker_outbox (queue, redis_id, message_id, actor, message) VALUES ('attribution', 'r', 'm', 'a', '{}')
"""


@pytest.fixture(autouse=True)
def without_sqlalchemy(monkeypatch: pytest.MonkeyPatch, database: Database) -> Iterator[None]:
    """As in a process that has not imported it."""
    monkeypatch.setattr(glance, "is_loaded", lambda: False)
    yield
    glance.close()


@pytest.fixture
def admin(database: Database) -> Iterator[psycopg.Connection[TupleRow]]:
    with psycopg.connect(database.admin_url, autocommit=True) as connection:
        yield connection


def connections(admin: psycopg.Connection[TupleRow], database: Database) -> int:
    found = admin.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND application_name = 'dramaturg'", [database.name]
    ).fetchone()
    assert found is not None
    return int(found[0])


def test_it_sees_every_tenants_with_one_connection(database: Database, admin: psycopg.Connection[TupleRow]) -> None:
    for _ in range(3):
        assert not glance.may_be_there(_ANYTHING)
        assert not glance.may_be_there(_MAY_HAVE_WORK)
    assert connections(admin, database) == 1
    admin.execute(ROW.replace("(queue,", "(tenant_id, queue,").replace("('attribution'", "(gen_random_uuid(), 'llm'"))
    assert glance.may_be_there(_ANYTHING)
    assert not glance.may_be_there(_MAY_HAVE_WORK)


@pytest.mark.parametrize(
    "replay",
    [
        "INSERT INTO worker_replays (state, created_by, filter, settings) VALUES ('running', 'x', '{}', '{}')",
        "INSERT INTO worker_failed_jobs (id, task_id, task_name, error_type, exception_class, error_message, status)"
        " VALUES (gen_random_uuid(), 't', 'a', 'unknown', 'E', 'e', 'in_progress')",
    ],
)
def test_replays(replay: str, admin: psycopg.Connection[TupleRow]) -> None:
    admin.execute(replay)
    assert glance.may_be_there(_MAY_HAVE_WORK)


def test_replays_that_were_removed_from_redis(database: Database, redis_url: str) -> None:
    broker = make_broker(Settings.load({**database.environment(), "REDIS_URL": redis_url}))
    assert isinstance(broker, LosslessBroker)
    replayer = next(one for one in broker.middleware if isinstance(one, Replayer))
    assert not replayer._may_have_work(broker)
    broker.run("note_removed_replays", "who and why", "an item")
    assert replayer._may_have_work(broker)
    broker.close()


def test_where_it_cannot_tell_there_may_be(
    database: Database, admin: psycopg.Connection[TupleRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert glance.may_be_there("SELECT FROM no_such_table")
    assert not glance.may_be_there(_ANYTHING)
    admin.execute("SELECT pg_terminate_backend(pid, 15000) FROM pg_stat_activity WHERE application_name = 'dramaturg'")
    assert glance.may_be_there(_ANYTHING)
    # It begins again.
    assert not glance.may_be_there(_ANYTHING)
    configuration.configure("postgres://nobody@127.0.0.1:1/none")
    glance.close()
    assert glance.may_be_there(_ANYTHING)
    configuration.configure(database.worker_url, operator_database_url=database.operator_url)
    # Whoever has SQLAlchemy looks with it.
    monkeypatch.setattr(glance, "is_loaded", lambda: True)
    assert glance.may_be_there(_ANYTHING)
    eventually(lambda: connections(admin, database) == 0)


def test_nobody_waits_for_an_answer_to_another(database: Database, admin: psycopg.Connection[TupleRow]) -> None:
    asking = Thread(target=glance.may_be_there, args=("SELECT FROM pg_sleep(60)",))
    asking.start()
    eventually(lambda: admin.execute("SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'").fetchone())
    # Not sure.
    assert glance.may_be_there(_ANYTHING)
    assert asking.is_alive()
    # As at the end of a process.
    glance.close()
    assert asking.is_alive()
    admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'")
    asking.join()
    assert not glance.may_be_there(_ANYTHING)
