"""``explain_window`` on real servers, by a real worker process, through what an API does wrong."""

from __future__ import annotations

import re
import threading
from typing import Any

import psycopg
from psycopg.rows import dict_row

from tests.e2e.deployment import Deployment
from tests.integration.test_recompute import Sale, Touch, given_events
from tests.llm_server import ANSWER, answers, fails, running_llm, silent
from tests.waiting import eventually
from worker.attribution import recompute_window
from worker.llm import explain_window

WINDOW = {"window_start": "2025-01-01", "window_end": "2025-03-01"}
KEY = "key-of-nobody-1234"


def answered(deployment: Deployment) -> list[dict[str, Any]]:
    with psycopg.connect(deployment.database.admin_url, row_factory=dict_row) as admin:
        return admin.execute("SELECT * FROM worker_llm_answers ORDER BY answered_at").fetchall()


def test_from_a_recomputed_window_to_its_explanation(deployment: Deployment) -> None:
    tenants = [given_events(Touch("t", channel="email"), Sale("s", 12_345)) for _ in range(3)]
    hang_up = threading.Event()
    with running_llm() as llm:
        log = deployment.start(
            "dramatiq", "worker.attribution", "worker.llm", "-p", "1", "-t", "4",
            LLM_BASE_URL=llm.url, LLM_API_KEY=KEY, LLM_PRICE_INPUT="15", LLM_PRICE_OUTPUT="60",
            LLM_MONTHLY_BUDGET="500", LLM_TIMEOUT="2", MIN_BACKOFF="50", MAX_BACKOFF="100",
        )  # fmt: skip
        for tenant in tenants:
            deployment.send(recompute_window, tenant, **WINDOW)
        eventually(lambda: log.read_text().count("recomputed ") == 3, seconds=30)
        with psycopg.connect(deployment.database.operator_url) as operator:
            operator.execute(
                "INSERT INTO worker_llm_budgets (tenant_id, monthly_cents, changed_by) VALUES (%s, 0, 'ana')",
                [tenants[2]],
            )

        # Whatever passes is waited out: a limit with the time to wait, an outage, and a call that never ends.
        llm.then(fails(429, Retry_After="1"), fails(503), silent(hang_up), answers())
        deployment.send(explain_window, tenants[0], **WINDOW)
        eventually(lambda: answered(deployment), seconds=30)
        hang_up.set()
        assert len(llm.asked) == 4
        (first,) = answered(deployment)
        assert (first["tenant_id"], first["answer"], first["cost_microcents"]) == (tenants[0], ANSWER, 9_000)

        # What does not is a row, of the tenant's own.
        llm.then(fails(401, f"Incorrect API key provided: {KEY}"))
        deployment.send(explain_window, tenants[1], **WINDOW)
        eventually(lambda: len(deployment.failures()) == 1)
        deployment.send(explain_window, tenants[2], **WINDOW)
        eventually(lambda: len(deployment.failures()) == 2)
        failures = deployment.failures()
        assert [(f["tenant_id"], f["error_type"], f["retry_count"]) for f in failures] == [
            (tenants[1], "configuration_error", 0),
            (tenants[2], "budget_exceeded", 0),
        ]

        # And once it is mended, another replays it.
        retried = deployment.worker("failed", "retry", str(failures[0]["id"]), "--yes")
        assert retried.returncode == 0, retried.stdout + retried.stderr
        assert [a["tenant_id"] for a in answered(deployment)] == tenants[:2]
        # Again, for what is there already, and nothing of all this is left in Redis but counts of the last minute.
        deployment.send(explain_window, tenants[0], **WINDOW)
        eventually(lambda: "is explained already" in log.read_text())
        assert len(llm.asked) == 6
        eventually(lambda: deployment.waiting("llm") == 0)
        limits = list(deployment.client.scan_iter("dramatiq:__dramaturg__.llm_rate*"))
        assert limits
        assert all(0 < deployment.client.pttl(key) <= 60_000 for key in limits)
    with psycopg.connect(deployment.database.worker_url) as worker:
        worker.execute("SELECT set_config('app.current_tenant_id', %s, false)", [str(tenants[1])])
        assert worker.execute("SELECT answer FROM worker_llm_answers").fetchall() == [(ANSWER,)]
        assert worker.execute("SELECT calls, spent_microcents FROM worker_llm_spending").fetchall() == [(1, 9_000)]
    assert KEY not in log.read_text() + str(deployment.failures())
    assert "LLM_API_KEY is not set" not in log.read_text()


def test_without_a_key_it_is_said_at_the_start_and_in_the_row(deployment: Deployment) -> None:
    log = deployment.start("dramatiq", "worker.llm", "-p", "1", "-t", "2")
    tenant = deployment.add_tenant("acme")
    deployment.send(explain_window, tenant, **WINDOW)
    eventually(deployment.failures, seconds=30)
    (failure,) = deployment.failures()
    assert (failure["error_type"], failure["retry_count"]) == ("configuration_error", 0)
    assert failure["error_message"] == "LLM_API_KEY is not set, so no language model can be asked"
    said = [line for line in log.read_text().splitlines() if re.search("WARNING.*LLM_API_KEY is not set: ", line)]
    assert len(said) == 1
    # Who consumes another queue has no use for one.
    other = deployment.start("dramatiq", "worker.housekeeping", "-p", "1", "-t", "1")
    eventually(lambda: "is ready for action" in other.read_text())
    assert "LLM_API_KEY" not in other.read_text()
