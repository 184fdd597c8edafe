"""The jobs of ``maintenance`` and ``housekeeping`` by real worker processes, with what each of them does wrong."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from dramatiq import Message

from db import failed_jobs
from tests.e2e.deployment import Deployment
from tests.integration.test_failed_jobs import a_failure
from tests.waiting import eventually
from worker.housekeeping import ping, sample_queues
from worker.live import depth_samples
from worker.maintenance import adopt_dead_letters, apply_retention

XQ = "dramatiq:attribution.XQ"


def dead(redis_id: str, **options: Any) -> bytes:
    options = {"redis_message_id": redis_id, **options}
    return Message("attribution", "worker.attribution.recompute_window", (), {}, options, redis_id, 1).encode()


def test_what_keeps_it_tidy(deployment: Deployment) -> None:
    tenant = deployment.add_tenant("acme")
    for redis_id, data in {"a": dead("a", tenant_id=str(tenant)), "b": dead("b"), "c": b"nonsense"}.items():
        deployment.client.hset(f"{XQ}.msgs", redis_id, data)
        deployment.client.zadd(XQ, {redis_id: 1_735_732_800_000})
    old = failed_jobs.record(a_failure(failed_at=datetime.now(UTC) - timedelta(days=100)))
    with psycopg.connect(deployment.database.admin_url) as admin:
        admin.execute("UPDATE worker_failed_jobs SET status = 'resolved', resolved_at = failed_at WHERE id = %s", [old])
    log = deployment.start("dramatiq", "worker.maintenance", "worker.housekeeping", "-p", "1", "-t", "4")
    # Two of each at once, as two schedulers or a person beside one would send them.
    for _ in range(2):
        deployment.send(adopt_dead_letters, batch=2)
        deployment.send(apply_retention)
        deployment.send(sample_queues)
    deployment.send(adopt_dead_letters, batch=0)
    deployment.send(apply_retention, batch="all")
    deployment.send(ping, fail=True)
    deployment.send(ping)
    eventually(lambda: not any(map(deployment.waiting, ("maintenance", "housekeeping"))), seconds=60)

    failures = {row["task_id"]: row for row in deployment.failures()}
    adopted = {name: failures.pop(name) for name in ("a", "b")}
    assert (adopted["a"]["tenant_id"], adopted["b"]["tenant_id"]) == (tenant, None)
    assert sorted(
        (f["task_name"], f["error_type"], f["retry_count"], f["error_message"]) for f in failures.values()
    ) == [
        ("(undecodable)", "undecodable", 0, "not JSON: Expecting value: line 1 column 1 (char 0)"),
        ("worker.housekeeping.ping", "validation_error", 0, "housekeeping ping failure requested"),
        (
            "worker.maintenance.adopt_dead_letters",
            "validation_error",
            0,
            "batch: must be a whole number from 1 to 10000, not 0",
        ),
        (
            "worker.maintenance.apply_retention",
            "validation_error",
            0,
            "batch: must be a whole number from 1 to 10000, not 'all'",
        ),
    ]
    assert deployment.client.exists(XQ, f"{XQ}.msgs") == 0
    assert "retention removed 1 job, " in log.read_text()
    assert "pong, " in log.read_text()
    taken = depth_samples(deployment.client, 5)["attribution"]
    assert 1 <= len([n for n in taken.waiting if n is not None]) <= 2
