"""Dramatiq logs arguments and exceptions as they are; nothing secret may come out of it."""

from __future__ import annotations

import logging
import uuid

import dramatiq
import pytest
from dramatiq import Worker

from tests.unit.test_dead_letters import A
from worker.testing import TestBroker


def test_a_failing_jobs_secrets_stay_out_of_the_log(
    stub_broker: TestBroker, stub_worker: Worker, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    def login(user: str, password: str, url: str) -> None:
        raise ValueError(f"cannot reach {url}")

    actor = dramatiq.actor(
        broker=stub_broker, actor_name=f"test.{uuid.uuid4().hex}", queue_name="attribution", max_retries=0
    )(login)
    with caplog.at_level(logging.DEBUG):
        actor.send_with_options(args=("ada", "hunter2"), kwargs={"url": "postgres://app:hunter2@db/x"}, tenant_id=A)
        stub_broker.join("attribution", timeout=20_000)
        stub_worker.join()
    said = caplog.text + "".join(capfd.readouterr())
    assert "cannot reach postgres://app:[redacted]@db/x" in said
    assert f"{actor.actor_name}('ada', '[redacted]', url='postgres://app:[redacted]@db/x')" in said
    assert "hunter2" not in said
