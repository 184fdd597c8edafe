"""CELERY.md, done literally: its statements and commands, on the Celery system's table in both of its forms."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from uuid import UUID, uuid5

import psycopg
import pytest
from dramatiq import Message
from psycopg.types.json import Jsonb

from tests.e2e.deployment import Deployment
from tests.integration.test_migrations import build_first_celery_form, build_later_celery_form
from tests.servers import Database
from tests.waiting import eventually

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "CELERY.md").read_text("utf-8")
TENANT = UUID(int=0xA)
Left = Callable[[Callable[[Database], str]], Deployment]
RECOMPUTE, HEARTBEAT = "app.tasks.attribution.recompute_window", "app.tasks.housekeeping.heartbeat"
WINDOW = {"window_start": "2025-01-01T00:00:00Z", "window_end": "2025-02-01T00:00:00Z"}
#: What its tasks were given beside their own arguments.
OF_TENANT = {"tenant_id": str(TENANT), "correlation_id": str(UUID(int=7))}

#: What Celery left, by what it is called here: task, arguments as they were written, tenant, status.
LEFT = {
    "whole": (
        RECOMPUTE,
        [],
        {**WINDOW, "tenant_id": str(TENANT), "correlation_id": str(UUID(int=7))},
        TENANT,
        "pending",
    ),
    "cut": (RECOMPUTE, [], {"window_start": "2025-03-01T00:00:00Z", "window_end": "2025-04-0..."}, TENANT, "pending"),
    "as text": (RECOMPUTE, "('2025-01-01', '2025-02-01')", "{'model': 'linear'}", TENANT, "pending"),
    "nothing": (RECOMPUTE, None, None, TENANT, "pending"),
    "nobody's": (RECOMPUTE, [], WINDOW, None, "pending"),
    "renamed": (HEARTBEAT, [], {}, None, "pending"),
    "in progress": (RECOMPUTE, ["2025-05-01", "2025-06-01"], {}, TENANT, "in_progress"),
    "resolved": (RECOMPUTE, [], WINDOW, TENANT, "resolved"),
    "abandoned": (RECOMPUTE, [], WINDOW, TENANT, "abandoned"),
}


def identity(what: str) -> UUID:
    return uuid5(TENANT, what)


def fill(database: Database, table: str) -> None:
    """Put in what Celery left, as its handler did."""
    with psycopg.connect(database.admin_url) as connection:
        for what, (task, args, kwargs, tenant, status) in LEFT.items():
            connection.execute(
                f"INSERT INTO {table} (id, task_id, task_name, queue, worker, task_args, task_kwargs, tenant_id,"
                " error_type, exception_class, error_message, traceback, retry_count, status)"
                " VALUES (%s, %s, %s, 'attribution', 'celery@host', %s, %s, %s,"
                " 'database_error', 'OperationalError', 'connection lost', 'Traceback ...', 0, %s)",
                [identity(what), f"celery-{what}", task, _json(args), _json(kwargs), tenant, status],
            )


def _json(value: object) -> Jsonb | None:
    return None if value is None else Jsonb(value)


def blocks(language: str, holding: str) -> str:
    """Return the guide's block that holds some words."""
    (found,) = [b for b in re.findall(rf"```{language}\n(.*?)```", GUIDE, flags=re.DOTALL) if holding in b]
    return str(found)


def commands(holding: str) -> list[list[str]]:
    """Return the commands of such a block, word by word."""
    return [shlex.split(line, comments=True)[1:] for line in blocks("sh", holding).splitlines()]


@pytest.fixture
def left(empty_database: Database, redis_url: str, deployment_on: Callable[[Database, str], Deployment]) -> Left:
    """What Celery left in a table, taken over by the guide's first step."""

    def make(build: Callable[[Database], str]) -> Deployment:
        deployment = deployment_on(empty_database, redis_url)
        table = build(empty_database)
        fill(empty_database, table)
        before = rows(empty_database, table)
        take_over(deployment, table)
        assert rows(empty_database, "worker_failed_jobs") == before
        celery_goes_on(empty_database, table)
        assert len(deployment.failures()) == len(LEFT) + 1
        with psycopg.connect(empty_database.admin_url) as admin:
            admin.execute("INSERT INTO tenants (id, name) VALUES (%s, 'acme')", [TENANT])
        return deployment

    return make


def test_the_later_form_is_taken_over(left: Left) -> None:
    """The rest is the same as for the first: tests/integration/test_migrations.py has it that both become one."""
    deployment = left(build_later_celery_form)
    # Somebody who consumes it.
    deployment.stack.callback(deployment.broker.close)
    deployment.broker.consume("attribution")
    assert said(deployment, "--dry-run") == blocks("text", "would go").rstrip()


def test_the_first_form_is_taken_over_and_its_rows_are_sent_and_closed(left: Left) -> None:
    deployment = left(build_first_celery_form)
    deployment.start("dramatiq", "worker.attribution", "worker.housekeeping", "-p", "1", "-t", "2")
    eventually(lambda: deployment.client.exists("dramatiq:__dramaturg__.alive"), seconds=30)

    assert said(deployment, "groups").count("connection lost") == 2
    assert said(deployment, "list").count("recompute_window") == 6
    assert said(deployment, "--dry-run") == blocks("text", "would go").rstrip()

    given = {"$ID": "cut", "$IN_PROGRESS": "in progress", "$NOT_TO_BE_MENDED": "nothing"}
    ended = []
    for words in commands("worker failed edit"):
        done = deployment.worker(*(str(identity(given[word])) if word in given else word for word in words))
        assert done.returncode in {0, 3}, done.stderr
        ended.append(done.returncode)
    # Of the group some were refused.
    assert ended == [0, 0, 0, 3, 0]
    found = {row["id"]: row["status"] for row in deployment.failures()}
    assert {what: found[identity(what)] for what in LEFT} == {
        **dict.fromkeys(("whole", "cut", "renamed", "in progress", "nothing", "resolved"), "resolved"),
        **dict.fromkeys(("as text", "nobody's"), "pending"),
        "abandoned": "abandoned",
    }
    with psycopg.connect(deployment.database.admin_url) as admin:
        recomputed = admin.execute(
            "SELECT tenant_id, window_start::date::text, run_count FROM attribution_recompute_jobs ORDER BY 2"
        ).fetchall()
    # Two of them were for the same window.
    assert recomputed == [(TENANT, "2025-01-01", 2), (TENANT, "2025-05-01", 1)]

    with psycopg.connect(deployment.database.owner_url, autocommit=True) as owner:
        owner.execute(blocks("sql", "DROP VIEW").encode())


def said(deployment: Deployment, holding: str) -> str:
    """Return what one of the commands on what is there says, without what fills lines up."""
    (words,) = [words for words in commands("worker failed groups") if holding in words]
    return "\n".join(line.rstrip() for line in deployment.worker(*words, COLUMNS="160").stdout.splitlines())


def take_over(deployment: Deployment, table: str) -> None:
    """Do the guide's first step."""
    if table == "celery_task_failures":
        with psycopg.connect(deployment.database.owner_url, autocommit=True) as owner:
            owner.execute(blocks("sql", "CREATE VIEW").encode())
    migrate, check = commands("worker migrate\n")
    assert deployment.worker(*migrate).returncode == 0
    # Of a deployment in order it says so in test_roles.py.
    assert check == ["check"]


def celery_goes_on(database: Database, table: str) -> None:
    """Insert as Celery's handler does, under the name that it knows, bound to a tenant as it always was."""
    with psycopg.connect(database.worker_url) as celery:
        celery.execute("SELECT set_config('app.current_tenant_id', %s, true)", [str(TENANT)])
        celery.execute(
            f"INSERT INTO {table} (id, task_id, task_name, tenant_id, error_type, exception_class, error_message,"
            " status) VALUES (%s, 'meanwhile', 'app.tasks.llm.route', %s, 'unknown', 'E', 'm', 'pending')",
            [UUID(int=1), TENANT],
        )


def rows(database: Database, table: str) -> list[str]:
    with psycopg.connect(database.admin_url) as connection:
        return [row for (row,) in connection.execute(f"SELECT t::text FROM {table} t ORDER BY id")]


class Request:
    """What a Celery task knows of its message."""

    def __init__(self, **of: object) -> None:
        self.id, self.chain, self.chord, self.group, self.callbacks = str(UUID(int=9)), None, None, None, None
        self.__dict__.update(of)


def test_a_task_hands_its_message_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guide's code, with what it needs of Celery; the whole was tried by hand."""
    as_before: list[object] = []
    celery, before = ModuleType("celery"), ModuleType("app.tasks.attribution_before")
    declared: dict[str, Any] = {}

    def shared_task(**options: object) -> Callable[[Any], Any]:
        declared.update(options)
        return lambda function: function

    celery.shared_task = shared_task  # type: ignore[attr-defined]
    before.recompute_window = lambda **kwargs: as_before.append(kwargs)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "celery", celery)
    monkeypatch.setitem(sys.modules, "app.tasks.attribution_before", before)
    namespace: dict[str, Any] = {}
    exec(blocks("python", "# app/tasks/attribution.py"), namespace)  # noqa: S102 - it is ours
    hand_on, actor = namespace["recompute_window"], namespace["an_actor"]
    sent: list[Message[Any]] = []
    monkeypatch.setattr(actor.broker, "enqueue", sent.append)

    given = {**OF_TENANT, **WINDOW}
    hand_on(SimpleNamespace(request=Request()), **given)
    hand_on(SimpleNamespace(request=Request()), *WINDOW.values(), tenant_id=str(TENANT))
    for part in ({"chain": ["next"]}, {"group": "g"}, {"chord": "c"}, {"callbacks": ["next"]}):
        hand_on(SimpleNamespace(request=Request(**part)), **given)

    assert declared["acks_late"] is declared["reject_on_worker_lost"] is True
    assert declared["name"] == RECOMPUTE
    first, second = sent
    assert (first.message_id, first.actor_name) == (str(UUID(int=9)), "worker.attribution.recompute_window")
    assert (first.args, first.kwargs) == ((), WINDOW)
    assert first.options == OF_TENANT
    assert (second.args, second.kwargs) == (tuple(WINDOW.values()), {})
    assert as_before == [given] * 4
