"""What a tenant with SQL of its own may write into its rows, and no program can read, stops nobody else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from sqlalchemy import text

from db.failed import Filter, iterate
from db.replays import runs
from db.replays.runs import ReplaySettings, UnreadableReplay
from db.session import operator_transaction, transaction
from db.tenancy import tenant_context
from tests.integration.command_line import CommandLine
from tests.integration.replaying import A, B, Deployment
from worker.replay.replayer import Replayer

#: JSON that Postgres takes and Python does not: nested too deep, and a number of too many digits.
DEEP = "[" * 3_000 + "]" * 3_000
LONG = f"[{'7' * 5_000}]"


def write_replay(**values: str) -> None:
    """As tenant B."""
    given = {"filter": "{}", "settings": "{}", **values}
    with tenant_context(B), transaction() as s:
        s.execute(
            text(
                "INSERT INTO worker_replays (tenant_id, filter, settings, created_by, created_at)"
                " VALUES (:tenant, CAST(:filter AS jsonb), CAST(:settings AS jsonb), 'strange', '2020-01-01')"
            ),
            {"tenant": B, **given},
        )


def test_replays_that_nobody_can_read_hold_up_no_other(deployment: Deployment, worker: CommandLine) -> None:
    (row_id,) = deployment.fail("one")
    deployment.fails.clear()
    strange: list[dict[str, str]] = [
        *({"filter": each} for each in ('{"x": 1}', "7", '{"ids": [7]}', '{"text": ["a"]}', f'{{"x": {DEEP}}}', LONG)),
        *(
            {"settings": json.dumps(each)}
            for each in ([1], {"ramp": ["a"]}, {"ramp": [10**30]}, {"edit": "x"}, {"actor": 7}, {"window": "a"})
        ),
        {"filter": '{"actor": ["a\\\\u0001"], "text": "%%%"}'},
    ]
    for each in strange:
        write_replay(**each)
    with tenant_context(A), transaction() as s:
        replay_id = runs.create(s, Filter(ids=(row_id,)), ReplaySettings(), by="tenant")
    runner = deployment.runner("housekeeping")
    with deployment.working():
        Replayer(operator_transaction, lambda *_: runner).look(runner)
    assert deployment.stands(replay_id).state == "finished"
    # Nobody looks at them for ever.
    states = deployment.rows("SELECT state, why FROM worker_replays WHERE created_by = 'strange' ORDER BY state")
    assert [state["state"] for state in states] == ["finished"] + ["stopped"] * (len(strange) - 1)
    assert {state["why"] for state in states[1:]} == {"its filter or its settings cannot be read"}
    (one, *_) = deployment.rows("SELECT id FROM worker_replays WHERE state = 'stopped'")
    with operator_transaction() as s, pytest.raises(UnreadableReplay, match=str(one["id"])):
        runs.get(s, one["id"])
    assert str(replay_id)[:8] in worker("replays", "list").stdout
    assert "cannot be read" in worker("replays", "show", one["id"], status=1).stderr


@pytest.mark.parametrize("json_", [DEEP, LONG])
def test_jobs_and_events_that_nobody_can_read_hide_no_other(
    deployment: Deployment, worker: CommandLine, json_: str
) -> None:
    (own,) = deployment.fail("one", tenant=A)
    (strange,) = deployment.fail("two", tenant=B)
    deployment.fails.clear()
    with tenant_context(B), transaction() as s:
        given: dict[str, Any] = {"json": json_, "id": strange, "tenant": B, "other": own}
        s.execute(
            text("UPDATE worker_failed_jobs SET task_args = CAST(:json AS jsonb), task_kwargs = CAST(:json AS jsonb)"),
            given,
        )
        s.execute(text("UPDATE worker_failed_job_details SET attempts = CAST(:json AS jsonb)"), given)
        s.execute(
            text(
                "INSERT INTO worker_failed_job_events (failed_job_id, tenant_id, event, changed_by, before, after)"
                " VALUES (:other, :tenant, 'edited', 'strange', CAST(:json AS jsonb), CAST(:json AS jsonb))"
            ),
            given,
        )
    assert "strange" in worker("failed", "audit").stdout
    for row_id in (own, strange):
        assert str(row_id) in worker("failed", "show", row_id).stdout
        worker.json("failed", "show", row_id)
    worker("failed", "export")
    with operator_transaction() as s:
        assert {job.id for job in iterate(s, Filter(actor=("test.replayed",)))} == {own, strange}
    # Its original is whole.
    with deployment.working():
        done = deployment.runner().run_to_end(deployment.replay(Filter(actor=("test.replayed",))))
    assert done is not None
    assert done.items == {"succeeded": 2}
