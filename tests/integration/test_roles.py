"""``roles.sql``, as Postgres' image runs it for compose.yaml: what then is, has no error."""

from __future__ import annotations

import os
import subprocess
from contextlib import closing
from pathlib import Path

import psycopg

from tests.servers import running_redis, temporary_folder
from worker import migrate
from worker.check import Status, check_deployment
from worker.embedded import EmbeddedPostgres

ROOT = Path(__file__).parents[2]
PASSWORDS = {"RELEASE_PASSWORD": "one'\"\\", "WORKER_PASSWORD": "two", "OPERATOR_PASSWORD": "three"}
#: Who works as whom, and what he is told to say for a password.
LOGINS = {
    "MIGRATION_DATABASE_URL": ("release_login", "one%27%22%5C"),
    "DATABASE_URL": ("worker_login", "two"),
    "OPERATOR_DATABASE_URL": ("operator_login", "three"),
}


def test_the_logins_do_for_a_deployment(tmp_path: Path) -> None:
    with temporary_folder() as folder, running_redis(appendonly="yes", appendfsync="always") as redis_url:
        server = EmbeddedPostgres(folder / "postgres", settings={"fsync": "off"})
        server.start()
        try:
            with closing(psycopg.connect(server.url("superuser"), autocommit=True)) as admin:
                # As a new server is.
                for statement in ("DROP ROLE app_user", "DROP ROLE app_operator", "CREATE DATABASE compose"):
                    admin.execute(statement.encode())
            done = subprocess.run(
                [server._bin / "psql", "--quiet", "--file", ROOT / "roles.sql", server.url("superuser", "compose")],
                env={**os.environ, **PASSWORDS},
                capture_output=True,
                text=True,
                check=False,
            )
            assert (done.returncode, done.stderr) == (0, "")
            place = f"127.0.0.1:{server.port}/compose"
            environment = {name: f"postgres://{who}:{word}@{place}" for name, (who, word) in LOGINS.items()}
            migrate.upgrade(environment["MIGRATION_DATABASE_URL"])
            found = check_deployment({**environment, "REDIS_URL": redis_url}, folder=tmp_path)
        finally:
            server.stop()
    checked = {finding.name for finding in found if finding.status is Status.OK}
    assert {"postgres.role", "postgres.rights", "postgres.row-level-security", "postgres.migrations"} <= checked
    # Nobody works yet, and that is all.
    assert {finding.name for finding in found if finding.status is not Status.OK} <= {"queues.consumers", "llm"}
