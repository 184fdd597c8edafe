"""``worker failed retry | edit`` and ``worker replays``: each command in a process of its own, on real servers."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from dramatiq import Worker
from sqlalchemy import text

from db.failed import Filter
from db.replays import edits, runs
from db.replays.edits import Arguments, Edit
from db.sealing import generate
from db.session import operator_transaction, transaction
from db.tenancy import tenant_context
from tests import forks
from tests.forks import Fork
from tests.integration.replaying import A, B, Deployment
from tests.waiting import eventually

PYTHON = Path(sys.executable).parent
ROOT = Path(__file__).parents[2]

#: What the deployment's actors are in the application that commands import.
SHOP = """
import dramatiq
import worker.broker


@dramatiq.actor(queue_name="attribution", actor_name="test.replayed", max_retries=0)
def run(what: str, password: str = "") -> None:
    raise RuntimeError("a command runs no job")


@dramatiq.actor(queue_name="attribution", actor_name="test.renamed", max_retries=0)
def renamed(what: str, password: str = "") -> None:
    raise RuntimeError("a command runs no job")
"""
PROCFILE = "web: gunicorn shop\nshop: env X=1 dramatiq shop.jobs --processes 1 --queues attribution\n"


class Shell:
    """Runs ``worker`` in the folder of an application, as ``ada``, with the settings of a deployment."""

    def __init__(self, folder: Path, deployment: Deployment, **more: str) -> None:
        self.folder = folder
        #: Of the processes.
        self.constants: dict[str, float] = {}
        self.environment = {
            **deployment.database.environment(),
            "REDIS_URL": deployment.settings.redis_url,
            "WORKER_OPERATOR": "ada",
            "COLUMNS": "80",
            "PATH": f"{PYTHON}:{os.environ['PATH']}",
            "HOME": str(folder),
            "LOG_LEVEL": "WARNING",
            **more,
        }

    def __call__(
        self, *arguments: object, status: int | None = 0, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command that must end with ``status``, any where it is None; nobody can be asked."""
        done = forks.run([*map(str, arguments)], **self._process(environment))
        assert status in {None, done.returncode}, f"{done.returncode}: {done.stdout}{done.stderr}"
        return done

    def json(self, *arguments: object, status: int = 0) -> Any:
        return json.loads(self(*arguments, "--json", status=status).stdout)

    def start(self, *arguments: object, streams: tuple[int, int, int] | None = None, **environment: str) -> Fork:
        """Start a command that leads a session of its own."""
        return Fork([*map(str, arguments)], streams=streams, leads=True, **self._process(environment))

    def _process(self, environment: dict[str, str]) -> dict[str, Any]:
        env = {**self.environment, **environment}
        return {"as_module": True, "cwd": self.folder, "env": env, "constants": self.constants}

    @contextmanager
    def terminal(self, *arguments: object, **environment: str) -> Iterator[Terminal]:
        """Run a command at a terminal of 80 columns."""
        master, slave = pty.openpty()
        process = self.start(*arguments, streams=(slave, slave, slave), **{"TERM": "xterm-256color", **environment})
        os.close(slave)
        try:
            yield Terminal(process, master)
        finally:
            process.kill()
            process.wait()
            os.close(master)


class Terminal:
    """What somebody at a terminal sees and types."""

    def __init__(self, process: Fork, master: int) -> None:
        self.process = process
        self._master = master
        self.raw = ""

    @property
    def text(self) -> str:
        """All that was written so far, without colours."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.raw).replace("\r", "")

    def look(self) -> None:
        while select.select([self._master], [], [], 0)[0]:
            try:
                found = os.read(self._master, 65_536)
            except OSError:
                return
            if not found:
                return
            self.raw += found.decode("utf-8", "replace")

    def until(self, condition: Callable[[], object]) -> None:
        def holds() -> object:
            self.look()
            return condition()

        try:
            eventually(holds, seconds=40)
        except AssertionError as e:
            raise AssertionError(f"{e}: {self.text}") from None

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def ends(self, status: int) -> str:
        """Return all that was seen, once the process has ended with ``status``."""
        self.until(lambda: self.process.poll() is not None)
        self.look()
        assert self.process.returncode == status, self.text
        return self.text


@pytest.fixture
def shell(deployment: Deployment, tmp_path: Path) -> Shell:
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "__init__.py").touch()
    (tmp_path / "shop" / "jobs.py").write_text(SHOP)
    (tmp_path / "Procfile").write_text(PROCFILE)
    return Shell(tmp_path, deployment)


@contextmanager
def housekeeping(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process that consumes every queue, and so runs replays that nobody runs."""
    monkeypatch.setattr("worker.replay.replayer.EVERY", 0.1)
    worker = Worker(deployment.broker, worker_timeout=20, worker_threads=4)
    worker.start()
    try:
        yield
    finally:
        worker.stop(timeout=10_000)


def in_order(deployment: Deployment, *what: str) -> list[UUID]:
    """Let jobs fail one after the other, and return their rows' ids."""
    deployment.fails |= set(what)
    with deployment.working(threads=1):
        for each in what:
            deployment.actor.send_with_options(args=(each,), kwargs={"password": "secret"}, tenant_id=str(A))
        eventually(lambda: len(deployment.rows()) == len(what), seconds=30)
    return [row["id"] for row in deployment.rows()]


def words(text: str) -> str:
    """Return ``text`` as if no line were wrapped."""
    return " ".join(text.split())


def everything(deployment: Deployment) -> dict[str, list[Any]]:
    """Every row of every table."""
    tables = deployment.rows("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1")
    return {
        t["tablename"]: sorted(str(row) for row in deployment.rows(f"SELECT * FROM {t['tablename']}")) for t in tables
    }


# --- retry ----------------------------------------------------------------------------------------


def test_one_by_the_beginning_of_its_id(deployment: Deployment, shell: Shell) -> None:
    (row_id,) = deployment.fail("one")
    deployment.fails.clear()
    with deployment.working():
        done = shell("failed", "retry", str(row_id)[:8], "--reason", "mended")
    assert deployment.status(row_id) == "resolved"
    assert "finished: 1 succeeded." in done.stdout
    # A line each, because nobody looks on: and not among what it says at the end.
    assert re.search(r"replay [0-9a-f]{8}: .*ended", done.stderr)
    (replay,) = deployment.rows("SELECT created_by, reason, state FROM worker_replays")
    assert replay == {"created_by": "ada", "reason": "mended", "state": "finished"}


def test_many_that_match_and_what_fails_again(deployment: Deployment, shell: Shell) -> None:
    rows = in_order(deployment, "1", "2", "3", "4")
    deployment.fails = {"2"}
    with deployment.working():
        done = shell("failed", "retry", "--actor", "replayed", "--yes", "--ramp", "4", status=3)
    assert [deployment.status(row_id) for row_id in rows] == ["resolved", "pending", "resolved", "resolved"]
    assert "3 succeeded, 1 failed again." in done.stdout
    assert f"failed again, {str(rows[1])[:8]}: ValueError: no 2" in done.stdout
    # What it says to do next does it: those that failed again, and no others.
    found = re.search(r"worker failed (list --replay [0-9a-f]{8})", done.stdout)
    assert found is not None
    listed = shell.json("failed", *found[1].split())
    assert [UUID(job["id"]) for job in listed["jobs"]] == [rows[1]]


def test_a_program_gets_all_of_it(deployment: Deployment, shell: Shell) -> None:
    in_order(deployment, "1", "2")
    deployment.fails = {"2"}
    with deployment.working():
        told = shell.json("failed", "retry", "--actor", "replayed", "--yes", status=3)
    assert (told["state"], told["items"], told["matched"]) == ("finished", {"succeeded": 1, "failed": 1}, 2)
    assert told["failures"][0]["error_message"] == "no 2"
    assert told["next_steps"][0]["command"].startswith("worker failed list --replay ")


def test_it_stops_by_itself_and_is_resumed(deployment: Deployment, shell: Shell) -> None:
    rows = in_order(deployment, "1", "2", "3", "4")
    with deployment.working():
        options = ("--yes", "--ramp", "1", "--window", "2", "--threshold", "50")
        done = shell("failed", "retry", "--actor", "replayed", *options, status=3)
        assert "stopped by itself: 2 of the last 2 failed again. 2 failed again. 2 jobs were not sent." in words(
            done.stdout
        )
        assert [deployment.status(row_id) for row_id in rows] == ["pending"] * 4
        found = re.search(r"worker replays (resume [0-9a-f]{8})", done.stdout)
        assert found is not None
        deployment.fails.clear()
        again = shell("replays", *found[1].split(), status=3)
    # Its own rest: what failed again is for another replay.
    assert "finished: 2 succeeded, 2 failed again." in again.stdout
    assert [deployment.status(row_id) for row_id in rows] == ["pending", "pending", "resolved", "resolved"]


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ([], 1, "say which jobs"),
        (["--actor", "replayed"], 1, "Say --yes, because nobody can be asked here"),
        (["--actor", "nobodys", "--yes"], 3, "nothing to retry: no failed job matches"),
        (["--status", "resolved", "--yes"], 3, "nothing to retry: no failed job matches"),
        (["--actor", "replayed", "--yes", "--ramp", "1,x"], 1, "--ramp must be whole numbers with commas between"),
        (["--actor", "replayed", "--yes", "--ramp", "0"], 1, "ramp must be one or more whole numbers from 1"),
        (["--actor", "replayed", "--yes", "--rate", "0"], 1, "rate must be more than 0 a second, not 0.0"),
        (["--actor", "replayed", "--yes", "--as", "replayed"], 1, "there is no actor 'replayed' in the modules"),
        (["--actor", "replayed", "--yes", "--as", "replayed"], 1, "there is test.replayed"),
        (["--actor", "replayed", "--yes", "--module", "shop.nothing"], 2, "module shop.nothing cannot be imported"),
        (["ffffffff"], 3, "no failed job's id begins with 'ffffffff'"),
        (["00000000-0000-4000-8000-000000000000"], 3, "is not there"),
        (["--replay", "abcdef"], 3, "no replay's id begins with 'abcdef'"),
    ],
)
def test_what_cannot_be_makes_no_replay(
    deployment: Deployment, shell: Shell, arguments: list[str], status: int, said: str
) -> None:
    in_order(deployment, "1", "2")
    done = shell("failed", "retry", *arguments, status=status)
    assert said in words(done.stdout + done.stderr)
    assert deployment.rows("SELECT FROM worker_replays") == []


def test_a_procfiles_module_that_cannot_be_imported_is_named(deployment: Deployment, shell: Shell) -> None:
    (row_id,) = deployment.fail("one")
    (shell.folder / "shop" / "jobs.py").write_text("raise ValueError('postgres://me:s3cret@there/db is no good')")
    done = shell("failed", "retry", row_id, status=2)
    assert "module shop.jobs cannot be imported: ValueError: postgres://me:[redacted]@there/db is no good" in (
        done.stderr
    )
    assert deployment.status(row_id) == "pending"


def test_named_ones_that_are_closed_are_refused_and_the_others_go(deployment: Deployment, shell: Shell) -> None:
    closed, open_ = in_order(deployment, "1", "2")
    deployment.fails.clear()
    deployment.sql("UPDATE worker_failed_jobs SET status = 'resolved' WHERE id = %s", closed)
    with deployment.working():
        done = shell("failed", "retry", closed, open_, status=3)
    assert f"{closed} is resolved, which is final" in done.stdout
    assert deployment.status(open_) == "resolved"
    assert [ran[0] for ran in deployment.ran] == ["1", "2", "2"]


def test_abandoned_ones_go_only_where_somebody_says_so(deployment: Deployment, shell: Shell) -> None:
    abandoned, pending = in_order(deployment, "1", "2")
    deployment.fails.clear()
    deployment.sql("UPDATE worker_failed_jobs SET status = 'abandoned' WHERE id = %s", abandoned)
    with deployment.working():
        shell("failed", "retry", "--actor", "replayed", "--yes")
        assert deployment.status(abandoned) == "abandoned"
        assert deployment.status(pending) == "resolved"
        shell("failed", "retry", "--actor", "replayed", "--status", "all", "--yes")
    assert deployment.status(abandoned) == "resolved"


# --- At a terminal --------------------------------------------------------------------------------


def test_somebody_is_asked_with_what_a_dry_run_says(deployment: Deployment, shell: Shell) -> None:
    in_order(deployment, "1", "2")
    deployment.fail("3", tenant=B)
    deployment.fails.clear()
    deployment.sql("DELETE FROM tenants WHERE id = %s", B)
    with deployment.working():
        with shell.terminal("failed", "retry", "--actor", "replayed") as terminal:
            terminal.until(lambda: "Retry 3 jobs?" in terminal.text)
            assert "3 jobs (3 pending)" in terminal.text
            assert "2 would go now." in terminal.text
            assert f"1 job would not: there is no tenant {B} any more" in words(terminal.text)
            terminal.type("n\n")
            terminal.ends(1)
        assert deployment.rows("SELECT FROM worker_replays") == []
        with shell.terminal("failed", "retry", "--actor", "replayed") as terminal:
            terminal.until(lambda: "Retry 3 jobs?" in terminal.text)
            terminal.type("y\n")
            said = terminal.ends(3)
    assert "2 succeeded, 1 refused." in said
    assert "under way" in said
    assert "Ctrl-C pauses it" in said


def test_ctrl_c_pauses_and_says_how_to_go_on(deployment: Deployment, shell: Shell) -> None:
    rows = in_order(deployment, "1", "2", "3")
    deployment.fails.clear()
    # None is worked on, so the first stays under way; but its queue has had a worker a moment ago.
    with deployment.working() as worker:
        worker.pause()
        with shell.terminal("failed", "retry", "--actor", "replayed", "--yes", "--ramp", "1") as terminal:
            terminal.until(lambda: [i["state"] for i in deployment.items()] == ["sent"])
            os.kill(terminal.process.pid, signal.SIGINT)
            said = terminal.ends(3)
        (replay,) = deployment.rows("SELECT id, state, why FROM worker_replays")
        assert (replay["state"], replay["why"]) == ("paused", "Ctrl-C")
        ident = str(replay["id"])[:8]
        assert f"worker replays resume {ident}" in said
        assert f"worker replays cancel {ident}" in said
        assert f"worker failed list --replay {ident} --status in_progress" in said
        assert [
            j["id"] for j in shell.json("failed", "list", "--replay", ident, "--status", "in_progress")["jobs"]
        ] == [str(rows[0])]
        worker.resume()
        # What was sent goes on, and closes its row.
        eventually(lambda: deployment.status(rows[0]) == "resolved")
        assert deployment.status(rows[1]) == "pending"
        shell("replays", "resume", ident)
    assert [deployment.status(row_id) for row_id in rows] == ["resolved"] * 3


# --- A dry run ------------------------------------------------------------------------------------


def test_a_dry_run_counts_by_reason_and_changes_nothing(deployment: Deployment, shell: Shell) -> None:
    in_order(deployment, "1", "2")
    deployment.fail("3", tenant=B)
    deployment.sql("DELETE FROM tenants WHERE id = %s", B)
    deployment.sql("UPDATE worker_failed_jobs SET task_args = '[\"…[cut]\"]' WHERE task_args ->> 0 = '2'")
    deployment.sql(
        "DELETE FROM worker_failed_job_originals WHERE failed_job_id IN"
        " (SELECT id FROM worker_failed_jobs WHERE task_args ->> 0 = '…[cut]')"
    )
    before = everything(deployment)
    with deployment.working():
        done = shell("failed", "retry", "--actor", "replayed", "--dry-run", status=3)
        told = shell.json("failed", "retry", "--actor", "replayed", "--dry-run", status=3)
        shell("failed", "retry", "--actor", "replayed", "--text", "secret", "--dry-run", status=3)
    assert everything(deployment) == before
    assert "1 of 3 jobs would go; nothing was changed." in done.stdout
    assert (told["matched"], told["would_go"]) == (3, 1)
    assert told["refused"] == {
        f"there is no tenant {B} any more": 1,
        "no original is kept, and its arguments were redacted or cut": 1,
    }
    for reason, example in told["examples"].items():
        assert example[:8] in done.stdout
        assert reason.split()[-1] in done.stdout


def test_a_dry_run_of_which_all_would_go_ends_well(deployment: Deployment, shell: Shell) -> None:
    in_order(deployment, "1", "2")
    with deployment.working():
        assert "2 of 2 jobs would go" in shell("failed", "retry", "--actor", "replayed", "--dry-run").stdout
    deployment.broker.close()
    command = ("failed", "retry", "--actor", "replayed", "--dry-run")
    eventually(lambda: "no worker consumes its queue, 'attribution'" in words(shell(*command, status=None).stdout))


# --- Renamed actors -------------------------------------------------------------------------------


def test_as_sends_to_the_actor_that_is_named_so_today(deployment: Deployment, shell: Shell) -> None:
    (row_id,) = deployment.fail("one")
    ran: list[str] = []

    def renamed(what: str, password: str = "") -> None:
        ran.append(what)

    deployment.declare(renamed, "test.renamed")
    with deployment.working():
        shell("failed", "retry", row_id, "--as", "test.renamed")
    assert ran == ["one"]
    assert deployment.status(row_id) == "resolved"


def test_rows_of_the_celery_system_go_to_the_actors_of_settings(deployment: Deployment, shell: Shell) -> None:
    deployment.sql(
        "INSERT INTO worker_failed_jobs (task_id, task_name, queue, task_args, task_kwargs, tenant_id, error_type,"
        " exception_class, error_message, id) VALUES"
        " ('c-1', 'app.tasks.run', 'celery', '[]', '{\"what\": \"of celery\"}', %s, 'unknown', 'E', 'm', %s),"
        " ('c-2', 'app.tasks.run', 'celery', '[]', '{\"what\": \"[Filtered]\"}', %s, 'unknown', 'E', 'm', %s)",
        A,
        UUID(int=1),
        A,
        UUID(int=2),
    )
    with deployment.working():
        done = shell(
            "failed",
            "retry",
            "--actor",
            "app.tasks.run",
            "--yes",
            status=3,
            RENAMED_ACTORS="app.tasks.run=test.replayed",
        )
    assert [(what, tenant) for what, tenant, _ in deployment.ran] == [("of celery", A)]
    assert [deployment.status(UUID(int=n)) for n in (1, 2)] == ["resolved", "pending"]
    assert "its arguments were redacted or cut" in words(done.stdout)
    # Some of what is not known is not enough.
    refused = shell("failed", "edit", UUID(int=2), "--set", 'what="a part"', "--as", "test.replayed", status=1)
    assert "say all of it, with --kwargs JSON or --args JSON" in refused.stderr


# --- edit -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sealed", [False, True])
def test_an_edit_is_sent_and_no_tenant_reads_it(deployment: Deployment, shell: Shell, sealed: bool) -> None:
    (row_id,) = deployment.fail("one")
    (original,) = deployment.rows("SELECT original FROM worker_failed_job_originals")
    deployment.fails.clear()
    if sealed:
        shell.environment["FAILED_JOB_KEYS"] = generate()
    with deployment.working():
        done = shell(
            "failed", "edit", row_id, "--set", 'what="two"', "--set", 'password="hunter2"', "--reason", "was wrong"
        )
    assert [ran[0] for ran in deployment.ran] == ["one", "two"]
    assert deployment.status(row_id) == "resolved"
    assert re.findall(r"[-+] \".*\"", done.stdout) == ['- "one"', '+ "two"', '- "[redacted]"', '+ "[redacted]"']
    assert "hunter2" not in done.stdout + done.stderr
    # The original is as it was; what was sent is kept beside it.
    assert deployment.rows("SELECT original FROM worker_failed_job_originals") == [original]
    (kept,) = deployment.rows("SELECT edit FROM worker_replay_edits")
    assert (b"hunter2" in kept["edit"]) is not sealed
    # Who, why, and which: to what is for operators.
    (event,) = deployment.rows("SELECT * FROM worker_failed_job_events WHERE event = 'edited'")
    assert (event["changed_by"], event["reason"], event["failed_job_id"]) == ("ada", "was wrong", row_id)
    assert event["after"]["arguments"] == ["what", "password"]
    for table in ("worker_replays", "worker_replay_items", "worker_failed_job_events", "worker_failed_jobs"):
        assert "hunter2" not in str(deployment.rows(f"SELECT * FROM {table}"))
    (replay,) = deployment.rows("SELECT id FROM worker_replays")
    shown = shell("replays", "show", replay["id"]).stdout
    assert '- "one"' in shown
    assert '+ "two"' in shown
    assert "hunter2" not in shown
    # With its job's arguments it is forgotten.
    shell("failed", "forget", row_id, "--reason", "asked for", "--yes")
    assert deployment.rows("SELECT FROM worker_replay_edits") == []


def test_all_arguments_are_edited_by_name_or_by_place(deployment: Deployment, shell: Shell) -> None:
    first, second = in_order(deployment, "1", "2")
    deployment.fails.clear()
    with deployment.working():
        shell("failed", "edit", first, "--args", "[]", "--kwargs", '{"what": "by name"}')
        shell("failed", "edit", second, "--args", '["by place", "x"]', "--kwargs", "{}")
    assert [ran[0] for ran in deployment.ran[2:]] == ["by name", "by place"]


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ([], 1, "say what to change"),
        (["--set", "what"], 1, "--set must be NAME=JSON, not 'what'"),
        (["--set", "what=hunter2"], 1, "--set what is not JSON, at character 1"),
        (["--kwargs", "[1]"], 1, "--kwargs must be an object"),
        (["--args", "{}"], 1, "--args must be an array"),
        (["--set", 'what="one"'], 1, "nothing was changed: the arguments are as they were"),
        (["--set", "nobodys=1"], 3, "got an unexpected keyword argument 'nobodys'"),
        (["--args", "[]"], 3, "missing a required argument: 'what'"),
        (["--set", "what=1", "--editor"], 1, "--editor is instead of"),
    ],
)
def test_what_cannot_be_edited_so_changes_nothing(
    deployment: Deployment, shell: Shell, arguments: list[str], status: int, said: str
) -> None:
    (row_id,) = deployment.fail("one")
    before = everything(deployment)
    with deployment.working():
        done = shell("failed", "edit", row_id, *arguments, status=status)
    assert said in words(done.stdout + done.stderr)
    assert "hunter2" not in done.stdout + done.stderr
    assert everything(deployment) == before


def test_at_a_terminal_the_editor_opens(deployment: Deployment, shell: Shell) -> None:
    (row_id,) = deployment.fail("one")
    deployment.fails.clear()
    editor = shell.folder / "editor"
    editor.write_text('#!/bin/sh\nstat -c %a "$1" > mode\necho "$1" > name\nsed -i s/one/two/ "$1"\n')
    editor.chmod(0o700)
    with deployment.working(), shell.terminal("failed", "edit", row_id, EDITOR=str(editor)) as terminal:
        terminal.until(lambda: "Send it so?" in terminal.text)
        terminal.type("y\n")
        terminal.ends(0)
    assert [ran[0] for ran in deployment.ran] == ["one", "two"]
    assert (shell.folder / "mode").read_text() == "600\n"
    assert not Path((shell.folder / "name").read_text().strip()).exists()


def test_whoever_is_bound_to_a_tenant_edits_nothing(deployment: Deployment, shell: Shell) -> None:
    (row_id,) = deployment.fail("one")
    done = shell("failed", "edit", row_id, "--set", 'what="two"', "--as-tenant", A, status=1)
    assert "edit is for operators" in done.stderr
    assert deployment.rows("SELECT FROM worker_replays") == []


# --- Bound to a tenant ----------------------------------------------------------------------------


def test_a_tenants_own_go_by_an_operators_process_and_nobody_elses(
    deployment: Deployment, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    (ours,) = deployment.fail("1")
    (theirs,) = deployment.fail("2", tenant=B)
    deployment.fails.clear()
    del shell.environment["OPERATOR_DATABASE_URL"]
    with housekeeping(deployment, monkeypatch):
        done = shell("failed", "retry", "--actor", "replayed", "--yes", "--as-tenant", A)
    assert "finished: 1 succeeded." in done.stdout
    assert deployment.status(ours) == "resolved"
    assert deployment.status(theirs) == "pending"
    assert [(what, tenant) for what, tenant, _ in deployment.ran[2:]] == [("1", A)]


def test_a_tenant_that_names_anothers_job_touches_it_not(deployment: Deployment) -> None:
    (theirs,) = deployment.fail("2", tenant=B)
    deployment.fails.clear()
    # As one may who does not use the command.
    for where in (Filter(ids=(theirs,)), Filter(tenant_id=(B,)), Filter(actor=("test.replayed",))):
        with tenant_context(A), transaction() as session:
            replay_id = runs.create(session, where, runs.ReplaySettings(), by="eve")
        with deployment.working():
            done = deployment.runner().run_to_end(replay_id)
        assert done is not None
        assert (done.state, done.items, done.matched) == ("finished", {}, 0)
    assert deployment.status(theirs) == "pending"
    assert len(deployment.ran) == 1


def test_a_tenant_that_names_anothers_edit_is_sent_none_of_it(deployment: Deployment) -> None:
    (ours,) = deployment.fail("1")
    (theirs,) = deployment.fail("2", tenant=B)
    with operator_transaction() as session:
        secret = Edit(Arguments(["2"], {}), Arguments(["hunter2"], {}))
        edit_id = edits.keep(session, theirs, secret, None)
    settings = runs.ReplaySettings(edit={"id": str(edit_id)})
    with tenant_context(A), transaction() as session, pytest.raises(ValueError, match="edit is for operators"):
        runs.create(session, Filter(ids=(ours,)), settings, by="eve")
    # As one may who writes the row by hand.
    with tenant_context(A), transaction() as session:
        replay_id = runs.create(session, Filter(ids=(ours,)), runs.ReplaySettings(), by="eve")
        session.execute(
            text("UPDATE worker_replays SET settings = CAST(:s AS jsonb) WHERE id = :id"),
            {"s": json.dumps(settings.as_json()), "id": replay_id},
        )
    with deployment.working():
        done = deployment.runner().run_to_end(replay_id)
    assert done is not None
    assert done.items == {"refused": 1}
    assert [what for what, *_ in deployment.ran] == ["1", "2"]


def test_a_replay_that_nobody_runs_says_so(deployment: Deployment, shell: Shell) -> None:
    (row_id,) = deployment.fail("1")
    shell.constants["worker.cli.replays.running.TAKEN_WITHIN"] = 1.0
    with deployment.working():
        done = shell("failed", "retry", row_id, "--as-tenant", A, status=3)
    said = words(done.stdout)
    assert "waits: no process runs it. A worker that consumes housekeeping does" in said
    (replay,) = deployment.rows("SELECT id, tenant_id, state FROM worker_replays")
    assert (replay["tenant_id"], replay["state"]) == (A, "running")
    assert f"worker replays cancel {str(replay['id'])[:8]} --as-tenant {A}" in done.stdout
    assert "for operators" in shell("failed", "retry", row_id, "--dry-run", "--as-tenant", A, status=1).stderr


# --- replays --------------------------------------------------------------------------------------


def test_a_detached_one_is_run_by_a_worker(
    deployment: Deployment, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = in_order(deployment, "1", "2")
    deployment.fails.clear()
    made = shell.json("failed", "retry", "--actor", "replayed", "--yes", "--detach")
    assert (made["state"], made["items"]) == ("running", {})
    with housekeeping(deployment, monkeypatch):
        eventually(lambda: {deployment.status(row_id) for row_id in rows} == {"resolved"})
        eventually(lambda: shell.json("replays", "show", made["id"])["state"] == "finished")


def test_replays_are_listed_shown_paused_and_cancelled(deployment: Deployment, shell: Shell) -> None:
    rows = in_order(deployment, "1", "2")
    made = shell.json("failed", "retry", "--actor", "replayed", "--yes", "--detach", "--reason", "\x1b[2Jcleared")
    ident = made["id"][:8]
    paused = shell("replays", "pause", ident, "--why", "lunch")
    assert f"Replay {ident} is paused" in paused.stdout
    shown = shell("replays", "show", ident).stdout
    for said in (
        "PAUSED",
        "lunch",
        "ada",
        "--actor replayed",
        "20% of the last 20",
        f"worker replays resume {ident}",
    ):
        assert said in shown
    # What a row holds drives no terminal.
    assert "\x1b[2J" not in shown
    assert "\\x1b[2Jcleared" in shown
    assert "is paused: only one that is running can become paused" in shell("replays", "pause", ident, status=1).stderr
    listed = shell("replays", "list").stdout
    assert re.search(rf"{ident} +\d+s +paused +ada", listed)
    assert [each["id"] for each in shell.json("replays", "list", "--state", "paused")] == [made["id"]]
    assert shell.json("replays", "list", "--state", "finished") == []
    assert shell.json("replays", "cancel", ident, "--why", "no")["state"] == "cancelled"
    assert "is cancelled" in shell("replays", "resume", ident, status=1).stderr
    assert "no replay's id begins with" in shell("replays", "show", "abcdef01", status=3).stderr
    assert {deployment.status(row_id) for row_id in rows} == {"pending"}
    # Of nobody's concern who is bound to a tenant.
    assert shell.json("replays", "list", "--as-tenant", A) == []
    assert "no replay's id begins with" in shell("replays", "show", ident, "--as-tenant", A, status=3).stderr


def test_one_whose_process_died_is_resumed(deployment: Deployment, shell: Shell) -> None:
    rows = in_order(deployment, "1", "2")
    deployment.fails.clear()
    with deployment.working() as worker:
        worker.pause()
        process = shell.start("failed", "retry", "--actor", "replayed", "--yes")
        try:
            eventually(lambda: [i["state"] for i in deployment.items()] == ["sent"], seconds=30)
        finally:
            process.kill()
            process.wait()
        worker.resume()
        (replay,) = deployment.rows("SELECT id FROM worker_replays")
        # Not before its lease is over does anybody else run it; resume waits for that, here not for all of it.
        deployment.sql(f"UPDATE worker_replays SET runner_until = runner_until - interval '{runs.LEASE - 1} s'")
        done = shell("replays", "resume", replay["id"])
    assert "finished: 2 succeeded." in done.stdout
    assert [ran[0] for ran in deployment.ran[2:]] == ["1", "2"]
    assert {deployment.status(row_id) for row_id in rows} == {"resolved"}
