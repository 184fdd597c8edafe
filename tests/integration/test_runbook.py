"""What RUNBOOK.md asks of Postgres and Redis themselves: an operator may ask it, and gets an answer."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import redis

from tests.servers import Database
from tests.unit.test_runbook import RUNBOOK, lines


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    """Of a server whose limits are given back as they were."""
    with redis.Redis.from_url(redis_url) as client:
        before: Any = client.config_get("maxmemory*")
        yield client
        for name, value in before.items():
            client.config_set(name, value)


def commands(program: str) -> list[list[str]]:
    return [words for line in lines(RUNBOOK) if (words := shlex.split(line))[0] == program]


def test_each_statement_runs_as_an_operator(database: Database) -> None:
    asked = commands("psql")
    assert len(asked) > 5
    with psycopg.connect(database.operator_url, autocommit=True) as operator:
        for _, url, option, statement in asked:
            assert (url, option) == ("$OPERATOR_DATABASE_URL", "-c")
            operator.execute(statement.encode())


def test_each_command_is_one_of_redis(client: redis.Redis) -> None:
    asked = commands("redis-cli")
    assert len(asked) > 5
    for _, option, url, *words in asked:
        assert (option, url) == ("-u", "$REDIS_URL")
        if not words[0].startswith("--"):
            assert client.execute_command(*words) is not None, words
