"""A day recomputed for all tenants by real processes, one of which is killed while it sends."""

from __future__ import annotations

import json

import psycopg

from tests.e2e.deployment import Deployment
from tests.integration.test_recompute import MOST, Sale, Touch, given_events
from tests.waiting import eventually
from worker.attribution import recompute_day

DAY = "2025-01-01"
#: Set in Redis by ``tests.e2e.dying_fan_out``, which must not be imported here.
DIED = "died"


def test_from_the_tick_to_the_summary_with_a_worker_killed_between(deployment: Deployment) -> None:
    good = sorted(given_events(Touch("t", 0.1), Sale("s", 500, 0.5)) for _ in range(4))
    bad = given_events(Sale("s", MOST, 0.5), Sale("more", MOST, 0.5))
    command = ("dramatiq", "worker.attribution", "tests.e2e.dying_fan_out", "--queues", "attribution", "-p", "1")
    deployment.start(*command, "-t", "4")
    first = deployment.processes[-1]
    deployment.send(recompute_day, day=DAY)
    eventually(lambda: deployment.client.exists(DIED), seconds=60)
    # Dramatiq's main process ends when one of its children does; what that one held comes back with its lease.
    first.wait(30)
    log = deployment.start(*command, "-t", "4")
    eventually(lambda: ": 2025-01-01: " in log.read_text(), seconds=90)
    assert "2025-01-01: 4 of 5 recomputes succeeded, 1 failed" in log.read_text()
    with psycopg.connect(deployment.database.admin_url) as admin:
        assert admin.execute("SELECT tenant_id, run_count FROM attribution_recompute_jobs ORDER BY 1").fetchall() == [
            (tenant, 1) for tenant in good
        ]
        assert admin.execute("SELECT sum(allocated_cents) FROM attribution_channel_days").fetchone() == (2000,)
    (failure,) = deployment.failures()
    assert (failure["tenant_id"], failure["error_type"]) == (bad, "validation_error")

    # Mended, replayed, and told; what has no day is a row, and begins no run.
    with psycopg.connect(deployment.database.admin_url) as admin:
        admin.execute("DELETE FROM attribution_events WHERE event_id = 'more'")
    retried = deployment.worker("failed", "retry", str(failure["id"]), "--yes")
    assert retried.returncode == 0, retried.stdout + retried.stderr
    for day in ("2025-02-30", "9000-01-01"):
        deployment.send(recompute_day, day=day)
    eventually(lambda: len(deployment.failures()) == 3, seconds=30)
    said = sorted(row["error_message"] for row in deployment.failures()[1:])
    assert said[0] == "day: '2025-02-30' is not an ISO 8601 date"
    assert said[1].startswith("day: 9000-01-01 is not over")
    told = json.loads(deployment.worker("attribution", "runs", "--json").stdout)
    assert [(run["expected"], run["succeeded"], run["failed"], run["recovered"]) for run in told] == [(5, 4, 1, 1)]
    eventually(lambda: deployment.waiting("attribution") == 0)
    jobs = json.loads(deployment.worker("schedule", "--json").stdout)["jobs"]
    (job,) = [job for job in jobs if job["name"] == recompute_day.actor_name]
    assert (job["expression"], job["on"], job["missed"]) == ("10 2 * * *", True, "once")
