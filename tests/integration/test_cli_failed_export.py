"""``worker failed export``."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from db import failed_jobs
from db.failed import FailedJob, Filter, get, iterate, search
from db.session import operator_transaction
from tests.integration.command_line import CommandLine
from tests.integration.failed_rows import every_row, record_at_random
from tests.integration.test_failed_jobs import a_failure
from tests.servers import Database


def in_csv(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_every_row_in_full_as_json_lines(database: Database, worker: CommandLine) -> None:
    rows = record_at_random(database, 9, 250)
    lines = [json.loads(line) for line in worker("failed", "export").stdout.splitlines()]
    assert [line["id"] for line in lines] == [str(row["id"]) for row in rows]
    for line, row in zip(lines, rows, strict=True):
        for name in ("task_args", "task_kwargs", "error_message", "traceback", "status", "retry_count"):
            assert line[name] == row[name]
        assert line["failed_at"] == row["failed_at"].isoformat()
        assert line["correlation_id"] == str(row["correlation_id"])


def test_every_row_as_csv(database: Database, worker: CommandLine) -> None:
    rows = record_at_random(database, 9, 30)
    found = in_csv(worker("failed", "export", "--format", "csv").stdout)
    assert [line["id"] for line in found] == [str(row["id"]) for row in rows]
    assert found[0]["failed_at"] == rows[0]["failed_at"].isoformat()
    assert [line["error_message"] for line in found] == [row["error_message"] for row in rows]
    assert [line["tenant_id"] for line in found] == [str(row["tenant_id"] or "") for row in rows]


@pytest.mark.parametrize(
    "message", ["=1+1", "+1", "-2", "@SUM(A1)", "\t=1", " =1", "\n=1", "＝1", "=cmd|' /C calc'!A0", '=HYPERLINK("x")']  # noqa: RUF001
)  # fmt: skip
def test_a_spreadsheet_runs_nothing(worker: CommandLine, message: str) -> None:
    failed_jobs.record(a_failure(error_message=message, queue="=1", retry_count=3))
    (line,) = in_csv(worker("failed", "export", "--format", "csv").stdout)
    assert line["error_message"] == f"'{message}"
    assert line["queue"] == "'=1"
    # What is no text is left.
    assert line["retry_count"] == "3"
    (exact,) = worker("failed", "export").stdout.splitlines()
    assert json.loads(exact)["error_message"] == message


def test_a_file_is_there_in_full_and_replaced_only_by_force(
    database: Database, worker: CommandLine, tmp_path: Path
) -> None:
    rows = record_at_random(database, 10, 20)
    output = tmp_path / "failed.jsonl"
    done = worker("failed", "export", "--output", output)
    assert (done.stdout, done.stderr) == ("", f"20 jobs written to {output}\n")
    assert len(output.read_text().splitlines()) == len(rows)
    assert list(tmp_path.iterdir()) == [output]
    again = worker("failed", "export", "--output", output, "--queue", "llm", status=1)
    assert again.stderr == f"worker: {output} exists: --force replaces it\n"
    assert len(output.read_text().splitlines()) == len(rows)
    worker("failed", "export", "--output", output, "--queue", "nobody's", "--force")
    assert output.read_text() == ""
    nowhere = worker("failed", "export", "--output", tmp_path / "no" / "such", status=1)
    assert "No such file or directory" in nowhere.stderr


@pytest.mark.parametrize("error", [OperationalError("SELECT", {}, Exception("gone")), OSError(28, "No space left")])
def test_an_error_in_the_middle_leaves_no_file(
    worker: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    kept = failed_jobs.record(a_failure())

    def broken(session: Any, where: Filter) -> Iterator[FailedJob]:
        job = get(session, kept)
        assert job is not None
        yield job
        raise error

    monkeypatch.setattr("worker.cli.failed.export.iterate", broken)
    output = tmp_path / "failed.csv"
    output.write_text("what was there")
    done = worker(
        "failed", "export", "-o", output, "--format", "csv", "--force", status=1 if isinstance(error, OSError) else 2
    )
    assert done.stderr.startswith("worker: ")
    assert output.read_text() == "what was there"
    assert list(tmp_path.iterdir()) == [output]
    assert worker("failed", "export", status=1 if isinstance(error, OSError) else 2).exit_code


def test_few_are_in_memory_at_a_time(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    record_at_random(database, 11, 450)
    asked: list[int] = []
    in_full = search._get_all

    def counted(session: Session, ids: list[UUID]) -> list[FailedJob]:
        asked.append(len(ids))
        return in_full(session, ids)

    monkeypatch.setattr(search, "_get_all", counted)
    with operator_transaction() as session:
        found = iterate(session, Filter())
        assert asked == []
        first = next(found)
        assert asked == [200]
        rest = [job.id for job in found]
    assert asked == [200, 200, 50]
    every: list[UUID] = [row["id"] for row in every_row(database)]
    assert [first.id, *rest] == every
