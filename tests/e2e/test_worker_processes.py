"""`dramatiq worker.attribution` and the other three, as the Procfile starts them."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg.rows import dict_row

from tests.e2e.deployment import Deployment
from tests.processes import workers_of
from tests.waiting import eventually
from worker.attribution import recompute_window
from worker.demo.procfile import find_procfile
from worker.demo.run import EVIDENCE_QUERY
from worker.housekeeping import ping
from worker.llm import describe_window
from worker.maintenance import verify_window
from worker.procfile import read_procfile
from worker.queues import Queue

WINDOW = {"window_start": "2025-01-01T00:00:00Z", "window_end": "2025-01-31T23:59:59Z"}


def send_one_to_each(deployment: Deployment) -> None:
    tenant_id = uuid4()
    deployment.send(recompute_window, tenant_id, **WINDOW, fail=True)
    deployment.send(verify_window, tenant_id, **WINDOW)
    deployment.send(describe_window, tenant_id, **WINDOW)
    deployment.send(ping, fail=True)


@pytest.mark.parametrize("queue", list(Queue))
def test_a_worker_consumes_its_own_queue_and_no_other(deployment: Deployment, queue: Queue, tmp_path: Path) -> None:
    send_one_to_each(deployment)
    log = deployment.start("dramatiq", f"worker.{queue}", "-p", "1", "-t", "2", DYNO=f"{queue}.1")
    # Each fails, so its row says that it was consumed, and by whom.
    eventually(deployment.failures, seconds=30)
    eventually(lambda: deployment.waiting(queue) == 0)
    assert [f["queue"] for f in deployment.failures()] == [queue], log.read_text()
    # As Heroku calls its process.
    assert deployment.failures()[0]["worker"].partition("/")[0] == f"{queue}.1"
    assert {q: deployment.waiting(q) for q in Queue} == {q: int(q != queue) for q in Queue}
    # Of what `dramatiq` itself starts, all but the main process logs as we do.
    assert {
        json.loads(line)["pid"] for line in log.read_text().splitlines() if "[dramatiq.MainProcess]" not in line
    } <= set(workers_of(deployment.processes[-1].pid))


def test_whatever_the_module_imports(deployment: Deployment, tmp_path: Path) -> None:
    (tmp_path / "everything.py").write_text(
        "from worker.routing import register\n"
        "register(__name__, 'llm')\n"
        "import worker.attribution, worker.housekeeping, worker.llm, worker.maintenance\n"
    )
    send_one_to_each(deployment)
    deployment.start("dramatiq", "everything", "-p", "1", "-t", "2", cwd=tmp_path)
    eventually(deployment.failures, seconds=30)
    assert [f["queue"] for f in deployment.failures()] == ["llm"]


def test_queues_named_on_the_command_line_win(deployment: Deployment) -> None:
    send_one_to_each(deployment)
    deployment.start("dramatiq", "worker.attribution", "worker.llm", "-p", "1", "-t", "1", "--queues", "llm")
    eventually(deployment.failures, seconds=30)
    assert [f["queue"] for f in deployment.failures()] == ["llm"]


def test_a_module_without_a_route_consumes_all_declared_queues(deployment: Deployment, tmp_path: Path) -> None:
    (tmp_path / "anything.py").write_text(
        "import worker.attribution, worker.housekeeping, worker.llm, worker.maintenance\n"
    )
    send_one_to_each(deployment)
    deployment.start("dramatiq", "anything", "-p", "1", "-t", "2", cwd=tmp_path)
    eventually(lambda: len(deployment.failures()) == 4, seconds=30)


def test_the_evidence_documents_query_gives_its_expected_output(deployment: Deployment) -> None:
    tenant_id = deployment.add_tenant("acme")
    deployment.start("dramatiq", "worker.attribution", "-p", "1", "-t", "2")
    deployment.send(recompute_window, tenant_id, **WINDOW, fail=True)
    eventually(deployment.failures, seconds=30)
    with psycopg.connect(deployment.database.worker_url, row_factory=dict_row) as connection:
        connection.execute("SELECT set_config('app.current_tenant_id', %s, false)", [str(tenant_id)])
        row: dict[str, Any] | None = connection.execute(EVIDENCE_QUERY).fetchone()
    assert row is not None
    assert isinstance(row.pop("failed_at"), datetime)
    assert row == {
        "task_name": "worker.attribution.recompute_window",
        "queue": "attribution",
        "tenant_id": tenant_id,
        "error_type": "validation_error",
        "exception_class": "ValueError",
        "error_message": "attribution recompute failure requested",
        "window_start": "2025-01-01T00:00:00Z",
        "window_end": "2025-01-31T23:59:59Z",
        "status": "pending",
    }


def test_a_bad_setting_is_said_by_name_and_the_worker_does_not_start(deployment: Deployment) -> None:
    done = deployment.run("dramatiq", "worker.attribution", "-p", "1", MAX_RETRIES="many", LLM_SECRET="hunter2")
    assert done.returncode != 0
    assert "MAX_RETRIES: " in done.stderr
    assert "hunter2" not in done.stderr


class TestProcfile:
    def test_every_entry_says_how_many_processes(self) -> None:
        entries = read_procfile(find_procfile())
        assert list(entries) == ["release", *Queue, "web", "scheduler"]
        for queue in Queue:
            assert f"dramatiq worker.{queue} --processes " in entries[queue]

    def test_it_runs_under_honcho(self, deployment: Deployment) -> None:
        send_one_to_each(deployment)
        log = deployment.start("honcho", "start", *Queue)
        eventually(lambda: len(deployment.failures()) == 4, seconds=60)
        assert {f["queue"] for f in deployment.failures()} == set(Queue), log.read_text()

    def test_its_release_phase_migrates(self, deployment: Deployment) -> None:
        done = deployment.run("honcho", "run", *read_procfile(find_procfile())["release"].split())
        assert done.returncode == 0, done.stderr
        assert "up to date" in done.stdout
