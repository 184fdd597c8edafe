"""``worker failed`` as people and scripts meet it: terminals, pipes, shells."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import time
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from db import failed_jobs
from tests import forks
from tests.e2e.deployment import BIN, ROOT, Deployment
from tests.forks import Fork
from tests.integration.failed_rows import fingerprint
from tests.integration.test_failed_jobs import A, a_failure, rows
from tests.servers import Database

#: As an attacker writes a message, or an argument.
EVIL = "\x1b[31m[bold]x[/bold]\x1b]0;title\x07 \x9b2J [/red] \u202egnp\r\x7f"
ALLOWED = "\n\t"


def record(number: int = 1, **changes: Any) -> list[UUID]:
    failures = [a_failure(**{"fingerprint": fingerprint(0), **changes}) for _ in range(number)]
    failed_jobs.record_all(failures)
    return [failed_jobs.failed_job_id(f.task_id, f.task_name) for f in failures]


def environment(database: Database, **more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in {"NO_COLOR", "FORCE_COLOR", "COLUMNS", "WORKER_TENANT"}}
    settings = {**database.environment(), "REDIS_URL": "stub://", "TERM": "xterm-256color", "WORKER_OPERATOR": "ada"}
    return {**kept, **settings, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", **more}


def at_a_terminal(database: Database, *command: str, types: str = "", after: str = "", **more: str) -> tuple[str, int]:
    """Run a command at a terminal of 80 columns; type ``types`` once ``after`` is shown. Return what is seen."""
    terminal, theirs = pty.openpty()
    env = environment(database, COLUMNS="80", **more)
    process = Fork(command, cwd=ROOT, env=env, streams=(theirs, theirs, theirs), leads=True)
    os.close(theirs)
    seen, typed, end = b"", not types, time.monotonic() + 60
    while time.monotonic() < end:
        if not select.select([terminal], [], [], 1)[0]:
            if typed and types == "\x03":
                # Between a prompt and Python's reading of the answer, nothing heeds it: press again.
                os.write(terminal, types.encode())
            continue
        try:
            data = os.read(terminal, 65_536)
        except OSError:
            # The other side is gone.
            break
        if not data:
            break
        seen += data
        if not typed and after.encode() in seen:
            os.write(terminal, types.encode())
            typed = True
    os.close(terminal)
    return seen.decode(), process.wait()


def controls(text: str) -> set[str]:
    """Characters that drive a terminal, but for lines and columns."""
    return {c for c in text if c not in ALLOWED and (ord(c) < 32 or 127 <= ord(c) < 160 or c == "\u202e")}


def test_colours_are_for_terminals_alone(database: Database) -> None:
    (row_id,) = record(title="bad *")
    for command in (("list",), ("groups",), ("stats",), ("show", str(row_id))):
        shown, status = at_a_terminal(database, "failed", *command)
        assert (status, "\x1b[" in shown) == (0, True), shown
        plain, _ = at_a_terminal(database, "failed", *command, NO_COLOR="1")
        assert not re.search(r"\x1b\[[\d;]*3\d", plain), plain
        as_json, _ = at_a_terminal(database, "failed", *command, "--json")
        assert json.loads(as_json)
        assert "\x1b" not in as_json
        piped = forks.run(["failed", *command], cwd=ROOT, env=environment(database))
        assert (piped.returncode, "\x1b" in piped.stdout) == (0, False)


def test_what_a_failure_holds_drives_no_terminal(deployment: Deployment) -> None:
    record(
        task_name=f"evil.{EVIL}",
        queue=EVIL,
        worker=EVIL,
        error_type=EVIL,
        exception_class=f"evil.{EVIL}",
        error_message=f"{EVIL}\n{EVIL}",
        traceback=f'Traceback (most recent call last):\n  File "{EVIL}", line 1, in {EVIL}\n    {EVIL}\nE: {EVIL}\n',
        task_args=[EVIL],
        task_kwargs={EVIL: EVIL},
        title=EVIL,
        place=f"evil:{EVIL}",
        attempts=[{"at": EVIL, "worker": EVIL, "exception_class": EVIL, "message": EVIL, "place": EVIL}],
    )
    row_id = str(rows(deployment.database)[0]["id"])
    deployment.worker("failed", "note", row_id, "--note", EVIL, "--by", EVIL)
    for command in (
        ("list",),
        ("groups",),
        ("stats",),
        ("show", row_id),
        ("show", row_id, "--traceback"),
        ("show", row_id, "--json"),
        ("list", "--json"),
        ("export",),
        ("export", "--format", "csv"),
        ("forget", "--queue", EVIL),
        ("purge", "--queue", EVIL, "--yes"),
    ):
        done = deployment.worker("failed", *command)
        # The end of a line of CSV.
        seen = (done.stdout + done.stderr).replace("\r\n", "\n")
        assert controls(seen) == set(), (command, seen)
        assert "Traceback (most" not in done.stderr
        if command[0] in {"list", "show", "groups"} and "--json" not in command:
            assert "[bold]x" in done.stdout, command


def test_a_reader_who_has_seen_enough_ends_it_quietly(deployment: Deployment) -> None:
    # More than a pipe holds.
    record(1_000, error_message="x" * 500)
    for command in ("list --limit 1000", "list --limit 1000 --json", "export", "export --format csv", "stats"):
        done = deployment.run("bash", "-c", f"worker failed {command} | head -n 1")
        assert (done.returncode, done.stderr) == (0, ""), command
        assert len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize(("types", "status", "left"), [("y\n", 0, "resolved"), ("n\n", 1, "pending"), ("\x03", 1, "")])
def test_somebody_at_a_terminal_is_asked(database: Database, types: str, status: int, left: str) -> None:
    record(3)
    command = ("failed", "resolve", "--queue", "attribution", "--note", "done")
    seen, ended = at_a_terminal(database, *command, types=types, after="[y/N]: ")
    assert "3 jobs (3 pending)" in seen
    assert "Resolve 3 jobs? [y/N]: " in seen
    assert ended == status or types == "\x03"
    assert {row["status"] for row in rows(database)} == {left or "pending"}


def test_a_shell_completes(deployment: Deployment) -> None:
    def completed(line: str) -> set[str]:
        done = deployment.worker(
            _WORKER_COMPLETE="complete_bash",
            COMP_WORDS=line,
            COMP_CWORD=str(len(line.split(" ")) - 1),
            DATABASE_URL="",
            EXTRA_QUEUES="emails",
        )
        return set(done.stdout.split())

    source = deployment.worker(_WORKER_COMPLETE="source_bash")
    assert "complete -o" in source.stdout
    assert {"list", "show", "groups", "stats", "resolve", "retention"} <= completed("worker failed ")
    assert completed("worker failed list --status res") == {"resolved"}
    assert completed("worker failed list --error-type data") == {"database_error"}
    assert completed("worker failed purge --queue ") >= {"attribution", "llm"}
    assert completed("worker failed retention set pay") == {"payload"}


def test_blocks_are_for_terminals_that_have_them(deployment: Deployment) -> None:
    record(failed_at=datetime.now(UTC))
    assert "█| 1 failed" in deployment.worker("failed", "stats", PYTHONIOENCODING="utf-8").stdout
    plain = deployment.worker("failed", "stats", PYTHONIOENCODING="ascii")
    assert plain.returncode == 0, plain.stderr
    assert "@| 1 failed" in plain.stdout


def test_a_terminal_without_unicode_shows_everything(deployment: Deployment) -> None:
    (row_id,) = record(error_message="für 株式会社", traceback='Traceback\n  File "/ü.py", line 1, in f\n    ü\nE\n')
    for command in (("list",), ("groups",), ("show", str(row_id)), ("export",), ("export", "--format", "csv")):
        done = deployment.worker("failed", *command, PYTHONIOENCODING="ascii")
        assert done.returncode == 0, done.stderr
        assert str(row_id)[:8] in done.stdout or command == ("groups",)


def test_the_help_tells_the_same_filters_everywhere(deployment: Deployment) -> None:
    for command in ("list", "show", "groups", "stats", "resolve", "abandon", "reopen", "note", "export", "purge"):
        said = deployment.worker("failed", command, "--help", COLUMNS="200").stdout
        for option in (
            *("--status", "--queue", "--actor", "--tenant", "--error-type", "--exception", "--fingerprint"),
            *("--correlation-id", "--since", "--until", "--text", "--as-tenant", "[ID]..."),
        ):
            assert option in said, (command, option)


def test_a_tenants_operator_needs_no_credential_of_an_operators(deployment: Deployment) -> None:
    (own,) = record()
    record(tenant_id=None)
    done = deployment.worker("failed", "list", "--json", OPERATOR_DATABASE_URL="", WORKER_TENANT=str(A))
    assert [job["id"] for job in json.loads(done.stdout)["jobs"]] == [str(own)]
