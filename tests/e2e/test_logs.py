"""Every line of a worker entry, from its start to a crash, is one JSON object that says which job caused it."""

from __future__ import annotations

import json
import os
import signal
from typing import Any
from uuid import UUID

from tests.e2e import noisy
from tests.e2e.deployment import Deployment
from tests.processes import workers_of
from tests.waiting import eventually

A, B = UUID(int=0xA), UUID(int=0xB)
JOB = ("queue", "actor", "message_id", "tenant_id", "correlation_id", "attempt")
ALWAYS = {"time", "level", "logger", "message", "process", "pid", "thread"}


def job_of(line: dict[str, Any]) -> tuple[Any, ...] | None:
    found = tuple(line[name] for name in JOB if name in line)
    assert len(found) in {0, len(JOB)}, line
    return found or None


def test_every_line(deployment: Deployment) -> None:
    failing = deployment.send(noisy.fails, A, password="hunter2", note="of a")
    waiting = deployment.send(noisy.waits, B, note="of b")
    log = deployment.start(
        *("worker", "dramatiq", "tests.e2e.noisy", "-p", "2", "-t", "2"),
        LOG_LEVELS="sqlalchemy.engine=INFO,dramatiq.worker.WorkerThread=DEBUG",
        WORKER_NAME="llm.1",
    )
    main = deployment.processes[-1]
    eventually(deployment.failures, seconds=60)
    eventually(lambda: deployment.waiting("llm") == 0 and log.read_text().count("ready for action") == 2)
    workers = workers_of(main.pid)
    # Its keeper says how it ended, the main process that it did, and the other worker that it stops.
    os.kill(workers[0], signal.SIGKILL)
    assert main.wait(60) != 0

    raw = log.read_bytes().splitlines(keepends=True)
    assert 7_900 < max(len(line) for line in raw) <= 8_000
    lines: list[dict[str, Any]] = [json.loads(line) for line in raw]
    assert all(set(line) >= ALWAYS and line["process"] == "llm.1" for line in lines)
    assert not any(isinstance(value, dict | list) for line in lines for value in line.values())
    assert b"hunter2" not in b"".join(raw)

    first = ("llm", "tests.e2e.noisy.fails", failing.message_id, str(A), failing.message_id, 1)
    second = (*first[:-1], 2)
    other = ("llm", "tests.e2e.noisy.waits", waiting.message_id, str(B), waiting.message_id, 1)

    def jobs(message: str, logger: str | None = None) -> list[tuple[Any, ...] | None]:
        return [
            job_of(line)
            for line in lines
            if message in line["message"] and (logger is None or line["logger"].startswith(logger))
        ]

    for said in (
        *("loguru: of a [redacted]", "library: {'secret': ", "shy: {} (", "thread: of a", "printed: password=["),
        *("long: é", "Received message ", "Failed to process message "),
    ):
        assert [job for job in jobs(said) if job != other] == [first, second], said
    for said in ("coroutine: of b", "to_thread: of b", "task: of b"):
        assert jobs(said) == [other], said
    assert jobs("SELECT 'hunter' || ", "sqlalchemy.engine").count(first) == 1
    assert set(jobs("SELECT 'hunter' || ", "sqlalchemy.engine")) == {first, second, other}
    assert jobs("Retrying message ") == [first]
    assert jobs("Retries exceeded ") == [second]

    (one, _) = (line for line in lines if line["message"].startswith("loguru: "))
    assert (one["order"], one["api_key"], one["token"]) == (5, "[redacted]", "[redacted]")
    failed = next(line for line in lines if line["message"].startswith("Failed to process message "))
    assert (failed["exception_type"], failed["level"]) == ("ValueError", "ERROR")
    assert failed["exception_message"] == "cannot reach postgres://app:[redacted]@db/x"
    assert failed["exception_traceback"].startswith("Traceback (most recent call last):\n")
    assert "in fails\n" in failed["exception_traceback"]

    for said, pid in (
        ("Dramatiq '2.2.", main.pid),
        ("exited unexpectedly", main.pid),
        (f"worker process {workers[0]}, kept by ", None),
        ("Worker process is ready for action.", None),
        ("Stopping worker process...", workers[1]),
    ):
        found = [line for line in lines if said in line["message"]]
        assert found, said
        assert {job_of(line) for line in found} == {None}
        assert pid is None or {line["pid"] for line in found} == {pid}, said
