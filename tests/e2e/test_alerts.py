"""Alerts by real processes: a scheduler, workers of which one is killed again and again, and a server away at first."""

from __future__ import annotations

import os
import signal
from typing import Any
from uuid import UUID

from tests.e2e.deployment import Deployment
from tests.unit.test_alerts import verify
from tests.waiting import eventually
from tests.webhook import SECRET, TOKEN, receiver
from worker.housekeeping import deliver_alert, look_for_alerts, ping


def test_alerts_arrive_whoever_is_killed(deployment: Deployment) -> None:
    target = receiver()
    environment: dict[str, Any] = {
        "ALERT_WEBHOOK_URL": target.url,
        "ALERT_WEBHOOK_SECRETS": SECRET,
        "ALERT_ACTOR_FAILURES": "5",
        "SCHEDULE": f"{look_for_alerts.actor_name}=* * * * * *",
        "SCHEDULE_OFF": "worker.housekeeping.sample_queues",
        "LOG_LEVEL": "DEBUG",
    }
    logs = [deployment.start("worker", "scheduler", **environment)]
    logs.append(deployment.start("dramatiq", "worker.housekeeping", "-p", "1", "-t", "4", "--verbose", **environment))
    # What is there at first is no news, so the first look must have been.
    eventually(lambda: deployment.client.hexists("dramatiq:__dramaturg__.alerts", "began"), seconds=60)
    for _ in range(7):
        deployment.send(ping, fail=True)

    def delayed() -> int:
        return int(deployment.client.hlen(f"dramatiq:{deliver_alert.queue_name}.DQ.msgs"))

    # Nobody is there to take them; and whoever looked and tried is gone with all that he held.
    eventually(lambda: delayed() >= 2, seconds=60)
    os.killpg(deployment.processes[-1].pid, signal.SIGKILL)
    killed: list[int] = []

    def kill_the_first() -> None:
        # In the middle of a delivery: it was taken, and nobody will know.
        if not killed:
            killed.append(1)
            os.killpg(deployment.processes[-1].pid, signal.SIGKILL)

    target.during = kill_the_first
    with target.up():
        logs.append(
            deployment.start("dramatiq", "worker.housekeeping", "-p", "1", "-t", "4", "--verbose", **environment)
        )
        eventually(lambda: killed, seconds=60)
        logs.append(
            deployment.start("dramatiq", "worker.housekeeping", "-p", "1", "-t", "4", "--verbose", **environment)
        )
        # What was being delivered then comes again.
        eventually(lambda: len(ids(target.taken)) == 2 and len(target.taken) == 3, seconds=60)
        eventually(lambda: not delayed())
    for post in target.posts:
        assert verify(SECRET, post.headers, post.body)["id"] == post.headers["webhook-id"]
    # Seven failures are one cause, and one rate that is too high.
    alerts = {alert["id"]: alert for alert in target.taken}
    assert sorted(alert["event"] for alert in alerts.values()) == ["failure_rate", "new_group"]
    assert {row["task_name"] for row in deployment.failures()} == {ping.actor_name}
    text = "".join(log.read_text() for log in logs)
    assert f"{look_for_alerts.actor_name} is sent for" in text
    assert TOKEN not in text
    assert SECRET not in text


def ids(alerts: list[dict[str, Any]]) -> set[UUID]:
    return {UUID(alert["id"]) for alert in alerts}
