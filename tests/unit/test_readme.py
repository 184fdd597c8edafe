"""What the README shows is what there is."""

from __future__ import annotations

import csv
import re
import shlex
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from db import failed_jobs
from db.failed import Filter
from middleware import classification
from tests.integration.command_line import CommandLine
from tests.integration.test_failed_jobs import a_failure, rows
from tests.servers import Database
from worker.settings import Settings

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def settings_table() -> str:
    lines = ["| variable | default | what |", "| --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        default = "" if field.default is None or field.default == () else f"`{field.default}`"
        lines.append(f"| `{name.upper()}` | {default} | {field.description} |")
    return "\n".join(lines)


def test_the_table_of_settings_is_complete() -> None:
    assert f"<!-- settings -->\n{settings_table()}\n<!-- /settings -->" in README


def test_every_error_type_is_explained() -> None:
    types = {
        value
        for name, value in vars(classification).items()
        if name.isupper() and isinstance(value, str) and not name.startswith("BY_")
    }
    explained = set(re.findall(r"`([a-z_]+)`", README))
    assert len(types) == 13
    assert types <= explained


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The project that the README writes, from its own words."""
    files = dict(re.findall(r"```python\n# (\S+\.py)\n(.*?)```", README, flags=re.DOTALL))
    names = ("emails", "credits", "exports", "digests", "orders", "search")
    assert set(files) == {f"myapp/{name}.py" for name in names} | {"test_emails.py"}
    for name, code in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(code)
    (tmp_path / "myapp" / "__init__.py").write_text("")
    assert 'pytest_plugins = ["worker.testing"]' in README
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["worker.testing"]')
    return tmp_path


def run(*command: str, cwd: Path, **settings: str) -> str:
    environment = {"PYTHONPATH": f"{cwd}:{ROOT}", "PATH": "/usr/bin:/bin", **settings}
    done = subprocess.run(
        [sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_actor_and_its_test(project: Path) -> None:
    assert "1 passed" in run("-m", "pytest", "-q", "test_emails.py", cwd=project)


def test_the_actor_that_cleans_up(project: Path) -> None:
    code = "import os\nos.environ['REDIS_URL'] = 'stub://'\nfrom myapp.exports import export\nprint(export.queue_name)"
    assert run("-c", code, cwd=project).strip() == "emails"


def test_what_runs_by_the_clock(project: Path) -> None:
    code = (
        "import os\nos.environ['REDIS_URL'] = 'stub://'\nimport myapp.digests\n"
        "from worker.broker import broker, settings\nfrom worker.scheduler.jobs import jobs_of\n"
        "print([(job.name, job.rule, job.schedule.missed) for job in jobs_of(broker, settings)])"
    )
    off = {"SCHEDULE_OFF": "myapp.digests.look_for_mail", "SCHEDULE": "myapp.digests.send_digests=0 4 * * *"}
    assert run("-c", code, cwd=project).strip() == (
        "[('myapp.digests.look_for_mail', '*/10 * * * * UTC', 'once'), "
        "('myapp.digests.send_digests', '30 2 * * * Europe/Berlin', 'skip')]"
    )
    assert run("-c", code, cwd=project, **off).strip() == (
        "[('myapp.digests.look_for_mail', 'off', 'once'), "
        "('myapp.digests.send_digests', '0 4 * * * Europe/Berlin', 'skip')]"
    )


def test_what_is_unique(project: Path) -> None:
    code = (
        "import os\nos.environ['REDIS_URL'] = 'stub://'\nfrom myapp.search import index, outcome\n"
        "given = {'tenant_id': '00000000-0000-0000-0000-00000000000a'}\n"
        "first = index.send_with_options(args=('s', '1'), **given)\n"
        "second = index.send_with_options(args=('s', '2'), **given)\n"
        "print(outcome(second).replaced == first.message_id, index.broker.queues['emails'].qsize())"
    )
    assert run("-c", code, cwd=project).strip() == "True 1"


def test_sending(project: Path) -> None:
    (code,) = [b for b in blocks("python") if not b.startswith("# ")]
    code = f"import os\nos.environ['REDIS_URL'] = 'stub://'\n{code}\n" + (
        "queues = recompute_window.broker.queues\n"
        "print(queues['attribution'].qsize(), queues['attribution.DQ'].qsize())"
    )
    assert run("-c", code, cwd=project).strip() == "1 1"


def test_an_effect_that_happens_once_and_what_leaves_with_a_transaction(project: Path, database: Database) -> None:
    with psycopg.connect(database.admin_url) as admin:
        admin.execute("CREATE TABLE accounts (name text, cents int); INSERT INTO accounts VALUES ('acme', 100)")
        admin.execute("GRANT SELECT, UPDATE ON accounts TO app_user")
        admin.execute("CREATE TABLE orders (id text)")
        admin.execute("GRANT INSERT ON orders TO app_user")
    code = """
from uuid import UUID
from dramatiq import Worker
from db.tenancy import tenant_context
from myapp.credits import add_credit
from myapp.orders import place_order

with tenant_context(UUID(int=1)):
    sent = add_credit.send("acme", 5)
    place_order.fn("one")
print([place_order.broker.queues["orders"].get_nowait().count(name) for name in (b"note_attempt", b"send_invoice")])
add_credit.broker.enqueue(sent)
worker = Worker(add_credit.broker, worker_timeout=20)
worker.start()
add_credit.broker.join(add_credit.queue_name)
worker.stop()
"""
    said = run("-c", code, cwd=project, REDIS_URL="stub://", DATABASE_URL=database.worker_url)
    # What is sent with the transaction comes after what is sent in it.
    assert said.strip() == "[1, 1]"
    with psycopg.connect(database.admin_url) as admin:
        assert admin.execute("SELECT cents FROM accounts").fetchall() == [(105,)]
        assert admin.execute("SELECT count(*) FROM worker_once").fetchall() == [(1,)]


def test_every_shell_command_is_one_of_ours() -> None:
    words = {line.split()[1] for block in blocks("sh") for line in block.splitlines() if line.startswith("worker ")}
    assert words == {
        "tenants", "events", "migrate", "check", "spool", "queues", "workers", "failed", "replays", "console",
        "schedule", "scheduler", "attribution", "alerts", "metrics",
    }  # fmt: skip


def test_the_commands_on_failed_jobs_do_what_they_say(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = CommandLine(database)
    acme = worker.add_tenant("acme")
    failures = [a_failure(tenant_id=acme, fingerprint=f"{n}" * 32, error_message="no such window") for n in range(2)]
    failed_jobs.record_all(failures)
    given = {
        "$ID": str(failed_jobs.failed_job_id(failures[0].task_id, failures[0].task_name)),
        "$GROUP": failures[1].fingerprint,
    }
    monkeypatch.chdir(tmp_path)
    lines = [
        shlex.split(line, comments=True)
        for block in blocks("sh")
        for line in block.splitlines()
        if line.startswith(("worker failed", "worker tenants offboard"))
    ]
    # What is sent needs workers: tried in test_cli_replays.py.
    sent = [words for words in lines if words[2] in {"retry", "edit"}]
    assert [words[2] for words in sent] == ["retry", "retry", "edit"]
    for words in sent:
        known = worker("failed", words[2], "--help").stdout
        assert all(word in known for word in words if word.startswith("--"))
    lines = [words for words in lines if words not in sent]
    ran = [words[2] for words in lines if words[1] == "failed"]
    assert ran == [
        *("groups", "list", "show", "stats", "resolve", "abandon", "reopen", "note", "audit", "keys", "export"),
        *("forget", "retention", "purge"),
    ]
    for words in lines:
        worker(*(given.get(word, word) for word in words[1:]), *(["--yes"] if words[2] == "forget" else []))
    assert sorted(row["status"] for row in rows(database)) == ["pending", "resolved"]
    assert all(row["task_args"] is None for row in rows(database))
    with (tmp_path / "failed.csv").open(newline="") as file:
        assert len(list(csv.reader(file))) == 3


def test_every_filter_is_named() -> None:
    for name in Filter.__dataclass_fields__:
        option = {"tenant_id": "tenant"}.get(name, name).replace("_", "-")
        assert name == "ids" or f"--{option}" in README


def test_the_commands_are_the_ones_that_ci_runs() -> None:
    ci = (ROOT / ".ci" / "run").read_text("utf-8")
    assert len([b for b in blocks("sh") if "'.[dev]'" in b]) == 1
    assert "grep -m1 -F \"'.[dev]'\" README.md" in ci
