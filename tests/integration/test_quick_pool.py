"""A connection that is at hand is one that answers what it is asked, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from dramatiq.errors import ConnectionClosed

from middleware.lua_scripts import Scripts
from middleware.quick_pool import QuickPool
from tests.waiting import eventually
from worker.redis_client import make_redis
from worker.settings import Settings


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis(connection_pool=QuickPool.from_url(redis_url, retry=None)) as client:
        # As make_redis() has it.
        client.auto_close_connection_pool = True
        yield client


def connections(client: redis.Redis) -> list[str]:
    return [str(one["id"]) for one in client.client_list()]


def test_one_does_for_all_that_is_asked_in_turn(client: redis.Redis) -> None:
    run = Scripts(client, "dramatiq")
    mine = client.client_id()
    assert run("size", "a", "b") == 0
    assert client.client_id() == mine


def test_a_new_one_is_ready_after_one_call(redis_url: str) -> None:
    settings = Settings.load({"DATABASE_URL": "postgres://h/x", "REDIS_URL": redis_url})
    with redis.Redis.from_url(redis_url) as other, make_redis(settings) as client:
        other.config_resetstat()
        assert client.get("nothing") is None
        said = other.info("commandstats")
        assert said["cmdstat_get"]["calls"] == 1
        assert "cmdstat_ping" not in said
        # From 7.2 to 8.0 redis-py cannot be told not to.
        assert "cmdstat_client|setinfo" not in said or redis.__version__.startswith("7.")


def test_one_that_the_server_closed_is_not_used(client: redis.Redis, redis_url: str) -> None:
    mine = client.client_id()
    with redis.Redis.from_url(redis_url) as other:
        other.client_kill_filter(_id=mine)
        eventually(lambda: str(mine) not in connections(other))
    # No second try is made.
    assert Scripts(client, "dramatiq")("size", "a", "b") == 0
    assert client.client_id() != mine


def test_what_an_interrupt_left_unread_is_read_by_nobody(client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Scripts(client, "dramatiq")
    run("size", "a", "b")
    connection = client.connection_pool.get_connection()
    client.connection_pool.release(connection)

    def interrupted(*args: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(connection, "read_response", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run("enqueue", "q", 1, "id", b"data")
    # Its answer is on its way.
    assert connection._sock is None
    assert client.echo("mine") == b"mine"


def test_all_are_closed_with_their_client(client: redis.Redis, redis_url: str) -> None:
    pool = client.connection_pool
    taken = [pool.get_connection() for _ in range(3)]
    for connection in taken:
        pool.release(connection)
    client.close()
    assert all(connection._sock is None for connection in taken)
    # Whoever goes on opens another.
    assert client.ping()


def test_another_process_does_not_use_those_of_this_one(client: redis.Redis) -> None:
    mine = client.client_id()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, str(client.client_id()).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert int(os.read(read, 100)) != mine
    assert client.client_id() == mine


def test_a_server_that_does_not_know_a_script_is_told_it(client: redis.Redis) -> None:
    run = Scripts(client, "dramatiq")
    run("size", "a", "b")
    client.script_flush()
    assert run("size", "a", "b") == 0


def test_what_redis_refuses_is_one_error_and_keeps_the_connection(client: redis.Redis) -> None:
    run = Scripts(client, "dramatiq")
    client.set("dramatiq:a.msgs", "no hash")
    mine = client.client_id()
    with pytest.raises(ConnectionClosed, match="WRONGTYPE"):
        run("size", "a", "b")
    assert client.client_id() == mine
