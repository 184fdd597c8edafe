"""What ``worker failed`` says of a job that a replay has: which one, and not to close it meanwhile."""

from __future__ import annotations

import pytest

from db.failed import Filter
from db.replays import runs
from db.replays.runs import ReplaySettings
from db.session import transaction
from db.tenancy import tenant_context
from tests.integration.command_line import CommandLine
from tests.integration.replaying import A, Deployment
from tests.integration.test_replays_ended_elsewhere import claimed_and_sent


def test_an_operator_is_told_which_replay_has_it(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, worker: CommandLine
) -> None:
    (row_id,) = deployment.fail("one")
    replay_id = claimed_and_sent(deployment, row_id, monkeypatch)
    ident, short = str(replay_id)[:8], str(row_id)[:8]
    page = worker("failed", "show", row_id).stdout
    facts, steps = page.split("What next")
    assert f"replay {ident} sent it, and it has not ended" in facts
    commands = [line.split("#")[0].strip() for line in steps.splitlines()]
    assert commands[1] == "It is being sent again: that closes it where it succeeds, and else returns it."
    assert commands[2] == f"worker replays show {ident}"
    assert f"worker failed reopen {short}" in commands
    # Its success will close it.
    assert "resolve" not in steps
    assert "abandon" not in steps
    found = worker.json("failed", "show", row_id)
    assert found["advice"] == commands[1]
    assert [(part["replay_id"], part["state"], part["by"]) for part in found["replays"]] == [
        (str(replay_id), "sent", "ann")
    ]
    assert worker("replays", "show", ident).exit_code == 0
    # Whoever is bound to a tenant is told as much as they can look at.
    bound = worker("failed", "show", row_id, "--as-tenant", str(A)).stdout
    assert f"replay {ident} sent it, and it has not ended" in bound
    assert "worker replays show" not in bound
    said = worker("failed", "retry", row_id, "--as-tenant", str(A), status=3).stdout
    assert f"{row_id} is in_progress already: replay {ident} has it" in said


def test_a_tenants_own_replay_can_be_looked_at(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, worker: CommandLine
) -> None:
    monkeypatch.setattr("worker.replay.making.consumed_queues", lambda *_: {"attribution"})
    (row_id,) = deployment.fail("one")
    with tenant_context(A), transaction() as s:
        replay_id = runs.create(s, Filter(ids=(row_id,)), ReplaySettings(), by="tenant")
    deployment.runner(stop=lambda: bool(deployment.items())).run_to_end(replay_id)
    assert deployment.status(row_id) == "in_progress"
    bound = worker("failed", "show", row_id, "--as-tenant", str(A)).stdout
    assert f"worker replays show {str(replay_id)[:8]} --as-tenant {A}" in bound


def test_one_that_nobody_replays_is_told_as_such(deployment: Deployment, worker: CommandLine) -> None:
    (row_id,) = deployment.fail("one")
    deployment.sql("UPDATE worker_failed_jobs SET status = 'in_progress'")
    page = worker("failed", "show", row_id).stdout
    assert "it has not ended" not in page
    assert f"worker failed resolve {str(row_id)[:8]} --note" in page
    assert worker.json("failed", "show", row_id)["replays"] == []
    said = worker("failed", "retry", row_id, "--as-tenant", str(A), status=3).stdout
    assert f"{row_id} is in_progress already" in said
    assert "replay" not in said.splitlines()[0]
