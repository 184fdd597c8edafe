"""``worker scheduler`` as processes: two of them, one of which keeps being killed, and ``worker schedule``."""

from __future__ import annotations

import json
import signal
import time
from typing import Any

from tests.e2e.deployment import Deployment
from tests.e2e.scheduled import SEEN, TENANT
from tests.waiting import eventually

MODULE = ("--module", "tests.e2e.scheduled")
NAME = "tests.e2e.scheduled."


def seen(deployment: Deployment) -> list[str]:
    found: Any = deployment.client.lrange(SEEN, 0, -1)
    return [line.decode() for line in found]


def test_each_tick_runs_once_whoever_is_killed(deployment: Deployment) -> None:
    wrong = deployment.run("worker", "scheduler", *MODULE, SCHEDULE_OFF="tests.e2e.scheduled.tock")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "SCHEDULE_OFF: no actor 'tests.e2e.scheduled.tock' has a schedule; those that have: " in wrong.stderr
    deployment.start("dramatiq", "tests.e2e.scheduled", "--processes", "1", "--threads", "1")
    log = deployment.start("worker", "scheduler", *MODULE)
    kept = deployment.processes[-1]
    eventually(lambda: len(seen(deployment)) >= 2, seconds=60)
    # As another tick may be sent by either, each is killed in the middle of its work.
    for _ in range(2):
        other = deployment.start("worker", "scheduler", *MODULE)
        eventually(lambda other=other: f"{NAME}tick is sent for " in other.read_text(), seconds=60)  # type: ignore[misc]
        deployment.processes[-1].kill()
        deployment.processes[-1].wait()

    said = json.loads(deployment.run("worker", "schedule", "--json", *MODULE).stdout)
    # Beside ours, which the Procfile names.
    nightly, tick = (job for job in said["jobs"] if job["name"].startswith(NAME))
    assert (nightly["name"], nightly["timezone"], nightly["missed"]) == (f"{NAME}nightly", "Europe/Berlin", "skip")
    assert nightly["last"] is None
    assert nightly["next"]
    assert (tick["on"], tick["tenant_id"]) == (True, TENANT)
    assert tick["last"]["tick"]
    assert said["scheduler"]["living"] >= 1
    by_hand = deployment.run("worker", "schedule", "run", "nightly", *MODULE)
    assert f"{NAME}nightly is sent: message " in by_hand.stdout, by_hand.stderr
    eventually(lambda: "None nightly" in seen(deployment))

    asked = time.monotonic()
    kept.send_signal(signal.SIGTERM)
    assert kept.wait(20) == 0
    assert time.monotonic() - asked < 10
    assert "Traceback" not in log.read_text()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert any(line["message"].startswith(f"{NAME}tick is sent for ") for line in lines)
    # It said that it ends; those that were killed may be thought to live for a while.
    facts: Any = deployment.client.hvals("dramatiq:__dramaturg__.schedulers.facts")
    assert {fact["pid"] for fact in map(json.loads, facts) if fact["left"]} == {kept.pid}
    told = deployment.run("worker", "schedule", *MODULE, SCHEDULE_OFF=f"{NAME}nightly", COLUMNS="160").stdout
    assert " off" in told
    assert "30 2 * * * Europe/Berlin" in told

    eventually(lambda: deployment.waiting("ticks") == 0)
    found = [line for line in seen(deployment) if "nightly" not in line]
    assert len(found) > 4
    assert len(set(found)) == len(found)
    assert all(line.endswith(f"+00:00 x {TENANT}") for line in found)
    assert deployment.failures() == []
