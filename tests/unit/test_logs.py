"""Dramatiq logs arguments and exceptions as they are; nothing secret may come out of it."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator

import dramatiq
import pytest
from dramatiq import Worker
from loguru import logger

from middleware.redaction import Redactor
from tests.unit.test_dead_letters import A
from worker.logs import configure
from worker.testing import TestBroker


@pytest.fixture(autouse=True)
def _configured() -> Iterator[None]:
    """As in a process that the dramatiq command starts; undone afterwards."""
    before = logging.getLogRecordFactory()
    configure("DEBUG", Redactor())
    yield
    logging.setLogRecordFactory(before)
    logger.remove()


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


class Exits:
    def __str__(self) -> str:
        raise SystemExit(1)


def test_nor_do_those_of_any_other_line(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    url = "postgres://app:hunter2@db/x"
    log = logging.getLogger("anybody")
    with caplog.at_level(logging.INFO):
        log.info("password=hunter2")
        log.info("%s and %s", {"password": "hunter2"}, [url])
        log.info("%(url)s", {"url": url})
        try:
            raise ValueError(url)
        except ValueError:
            log.exception("broken")
            logger.exception("broken")
        logger.info("connecting to {}", url)
        log.info("%s", Exits())
    said = caplog.text + "".join(capfd.readouterr())
    assert said.count("app:[redacted]@db") >= 5
    assert "could not be redacted is left out: SystemExit" in said
    assert "hunter2" not in said


def test_importing_the_broker_leaves_an_applications_logging_alone() -> None:
    import subprocess
    import sys

    code = (
        "import logging, sys\n"
        "from loguru import logger\n"
        "logger.remove(); logger.add(sys.stdout, format='mine {message}')\n"
        "factory = logging.getLogRecordFactory()\n"
        "import worker.attribution\n"
        "logger.info('still'); print(factory is logging.getLogRecordFactory())\n"
    )
    environment = {"REDIS_URL": "stub://", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "mine still\nTrue\n"
