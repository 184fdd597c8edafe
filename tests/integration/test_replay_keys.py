"""A replay that is asked for twice with one key is made once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import psycopg
import pytest

from db.failed import Filter
from db.replays import keys, runs
from db.replays.runs import IllegalChange, ReplaySettings
from db.session import operator_transaction, transaction
from db.tenancy import tenant_context
from tests.integration.replaying import A
from tests.servers import Database

WHERE = Filter(actor=("shop.charge",))


def make(key: str, *, by: str = "ann", request: str = "all of them", where: Filter = WHERE) -> UUID:
    with operator_transaction() as s:
        return keys.create(s, where, ReplaySettings(), by=by, key=key, request=request)


def test_a_key_makes_one_replay_however_many_ask_at_once(database: Database) -> None:
    at_once = threading.Barrier(4)

    def ask(_: int) -> UUID:
        at_once.wait(10)
        return make("k")

    with ThreadPoolExecutor(4) as pool:
        made = set(pool.map(ask, range(4)))
    assert len(made) == 1
    with operator_transaction() as s:
        assert [replay.id for replay in runs.find(s)] == list(made)
        assert {keys.made_with(s, "k", by="ann", request="all of them")} == made
        assert keys.made_with(s, "another", by="ann", request="all of them") is None
        # What the key is for is no setting of the replay's.
        assert runs.find(s)[0].settings == ReplaySettings()
    with psycopg.connect(database.admin_url) as connection:
        events = connection.execute("SELECT count(*) FROM worker_failed_job_events").fetchone()
        assert events == (1,)
        # Another's key is another, and so is a tenant's.
        others = {make("k", by="bob")}
        with tenant_context(A), transaction() as s:
            others.add(keys.create(s, WHERE, ReplaySettings(), by="ann", key="k", request="all of them"))
        assert len(others | made) == 3


def test_a_key_is_for_one_request_and_for_a_day(database: Database) -> None:
    made = make("k")
    # Whatever had failed by then: the request is the same.
    assert make("k", where=Filter(ids=(UUID(int=1),))) == made
    with pytest.raises(IllegalChange, match=f"key 'k' made replay {made}, for another request"):
        make("k", request="some of them")
    for wrong in ("", " ", "\0", "k" * 256):
        with pytest.raises(ValueError, match="key must"):
            make(wrong)
    with psycopg.connect(database.admin_url) as connection:
        connection.execute("UPDATE worker_replays SET created_at = now() - interval '25 hours'")
    with pytest.raises(IllegalChange, match="more than 24 hours ago: give another"):
        make("k")
