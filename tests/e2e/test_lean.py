"""A worker whose jobs use no database imports SQLAlchemy when there is something to write or to read; and no worker
imports what takes as long and only the console needs."""

from __future__ import annotations

from pathlib import Path

import dramatiq
import psycopg
import pytest
from dramatiq import Message

from tests.e2e.deployment import Deployment
from tests.waiting import eventually

APPLICATION = """
import gc, os, sys
from worker.broker import broker
from worker.routing import actor, register

register(__name__, "llm")

@actor(tenant_scoped=False)
def say():
    found = [n for n in ("pydantic", "rich", "sqlalchemy", "typer") if n in sys.modules]
    found += [n for n in os.environ if n.startswith("LOGURU")] + ["no gc"] * (not gc.isenabled())
    broker.client.rpush("said", " ".join(found))

@actor(tenant_scoped=False, max_retries=0)
def fail():
    raise ValueError("first of all")
"""


def message_for(actor: str) -> Message[None]:
    message = Message[None]("llm", f"lean.{actor}", (), {}, {})
    return message.copy(options={"redis_message_id": message.message_id})


@pytest.fixture
def deployment_of_lean(deployment: Deployment, tmp_path: Path) -> Deployment:
    """With a worker that has run a job."""
    (tmp_path / "lean.py").write_text(APPLICATION)
    deployment.broker.enqueue(message_for("say"))
    log = deployment.start("dramatiq", "lean", "-p", "1", "-t", "2", cwd=tmp_path)
    eventually(lambda: deployment.client.lrange("said", 0, -1) == [b""], seconds=30)
    assert dramatiq.__version__ in log.read_text()
    return deployment


def test_the_first_failure_of_a_process_is_a_row(deployment_of_lean: Deployment) -> None:
    deployment_of_lean.broker.enqueue(message_for("fail"))
    eventually(deployment_of_lean.failures, seconds=30)
    (row,) = deployment_of_lean.failures()
    assert (row["task_name"], row["error_message"]) == ("lean.fail", "first of all")
    deployment_of_lean.broker.enqueue(message_for("say"))
    eventually(lambda: deployment_of_lean.client.lrange("said", 0, -1) == [b"", b"sqlalchemy"])


def test_what_a_sender_left_in_the_outbox_is_found(deployment_of_lean: Deployment) -> None:
    message = message_for("say")
    with psycopg.connect(deployment_of_lean.database.admin_url) as connection:
        connection.execute(
            "INSERT INTO worker_outbox (queue, redis_id, message_id, actor, message) VALUES (%s, %s, %s, %s, %s)",
            [message.queue_name, message.message_id, message.message_id, message.actor_name, message.encode()],
        )
    eventually(lambda: deployment_of_lean.client.llen("said") == 2)
    with psycopg.connect(deployment_of_lean.database.admin_url) as connection:
        eventually(lambda: connection.execute("SELECT count(*) FROM worker_outbox").fetchone() == (0,))


FALLS_BACK = """
import gc, signal
import dramatiq
from dramatiq.brokers.redis import RedisBroker
from loguru import logger
try:
    import worker.broker
except Exception as e:
    logger.error(f"going on without: {type(e).__name__}")
broker = RedisBroker(url="%s")
dramatiq.set_broker(broker)
blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
broker.client.rpush("fell_back", f"{gc.isenabled()} {signal.SIGTERM in blocked}")
"""


def test_an_application_may_go_on_where_the_broker_cannot_be_imported(deployment: Deployment, tmp_path: Path) -> None:
    (tmp_path / "falls_back.py").write_text(FALLS_BACK % deployment.redis_url)
    log = deployment.start("dramatiq", "falls_back", "-p", "1", "-t", "1", cwd=tmp_path, DB_POOL_SIZE="many")
    # In Dramatiq's main process, too, which imports it to find the broker.
    eventually(lambda: b"True False" in deployment.client.lrange("fell_back", 0, -1), seconds=30)
    eventually(lambda: "ready for action" in log.read_text())
    assert set(deployment.client.lrange("fell_back", 0, -1)) == {b"True False"}
    assert "going on without: ConfigurationError" in log.read_text()
    process = deployment.processes[-1]
    process.terminate()
    assert process.wait(20) == 0
