"""Dramaturg as somebody else's dependency: installed from a wheel, used from another folder."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.deployment import ROOT, Deployment
from tests.servers import Database
from tests.waiting import eventually

ACTORS = """
import dramatiq
from db.session import transaction
from db.tenancy import current_tenant
from worker.routing import actor, register
from sqlalchemy import text

register("myapp", "emails")

@actor(max_retries=0)
def greet(name: str) -> None:
    with transaction() as session:
        seen = session.execute(text("SELECT current_setting('app.current_tenant_id')")).scalar()
    raise RuntimeError(f"{name}, you are {seen == str(current_tenant())}")

@dramatiq.actor(queue_name="maintenance", max_retries=0)
def plain(name: str) -> None:
    raise RuntimeError(name)
"""

SEND = """
from db.tenancy import tenant_context
from myapp.actors import greet, plain
with tenant_context("00000000-0000-0000-0000-00000000000a"):
    greet.send("Ada")
    plain.send("plain")
"""


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the wheel installs, and nothing of the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    built = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(ROOT)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = folder.glob("*.whl")
    site = folder / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(pip, check=True)
    return site


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A user's project."""
    package = tmp_path / "project" / "myapp"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "actors.py").write_text(ACTORS)
    return package.parent


def test_the_wheel_carries_what_it_needs_and_no_name_of_everybodys(installed: Path) -> None:
    assert {p.name for p in installed.iterdir() if not p.name.endswith(".dist-info")} == {
        "bin",
        "db",
        "middleware",
        "worker",
    }
    console = ("worker/console/templates/base.html", "worker/console/static/console.css", "worker/metrics/alerts.yml")
    for path in ("db/migrations/env.py", "worker/Procfile", "worker/py.typed", "worker/demo/acme.csv", *console):
        assert (installed / path).is_file(), path


def test_migrations_and_workers_run_from_another_folder(
    empty_database: Database, redis_url: str, installed: Path, project: Path, tmp_path: Path,
    deployment_on: Callable[[Database, str], Deployment],
) -> None:  # fmt: skip
    deployment = deployment_on(empty_database, redis_url)
    python = {"PYTHONPATH": str(installed)}
    where = deployment.run(sys.executable, "-c", "import worker; print(worker.__file__)", cwd=project, **python)
    assert where.stdout.strip() == str(installed / "worker" / "__init__.py")
    migrated = deployment.run(sys.executable, "-m", "worker", "migrate", cwd=project, **python)
    assert "up to date" in migrated.stdout, migrated.stderr
    log = deployment.start(
        "dramatiq", "myapp.actors", "worker.maintenance", "-p", "1", "-t", "2", cwd=project, **python
    )
    sent = deployment.run(sys.executable, "-c", SEND, cwd=project, **python)
    assert sent.returncode == 0, sent.stderr
    eventually(lambda: len(deployment.failures()) == 2, seconds=30)
    rows = {(f["task_name"], f["queue"], f["error_message"]) for f in deployment.failures()}
    assert rows == {
        ("myapp.actors.greet", "emails", "Ada, you are True"),
        ("plain", "maintenance", "plain"),
    }, log.read_text()


@pytest.mark.parametrize("name", ["db", "middleware"])
def test_a_users_package_of_our_name_is_named_when_a_worker_starts(
    deployment: Deployment, installed: Path, project: Path, name: str
) -> None:
    (project / f"{name}.py").write_text("")
    (project / "myapp" / "short.py").write_text("from worker.routing import actor")
    done = deployment.run("dramatiq", "myapp.short", "-p", "1", cwd=project, PYTHONPATH=str(installed))
    assert done.returncode != 0
    assert f"which hides the package '{name}' of dramaturg" in done.stderr


@pytest.mark.parametrize("name", ["worker", "middleware", "db"])
def test_and_by_our_command_which_a_release_runs_first(
    deployment: Deployment, installed: Path, project: Path, name: str
) -> None:
    (project / name).mkdir()
    (project / name / "__init__.py").write_text("")
    done = deployment.run(str(installed / "bin" / "worker"), "migrate", cwd=project, PYTHONPATH=str(installed))
    assert done.returncode != 0
    assert f"hides the package {name!r} of dramaturg" in done.stderr
