"""The command line in this process, on a database of the test's own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg
from typer.testing import CliRunner, Result

from db import session
from tests.servers import Database
from worker.cli import app
from worker.cli.common import console


@dataclass(frozen=True)
class CommandLine:
    """Runs ``worker`` with the settings of a deployment on a database; whoever calls it is ``ada``."""

    database: Database

    def __call__(self, *arguments: object, status: int = 0, **environment: str) -> Result:
        """Run a command that must end with ``status``."""
        settings = {
            **self.database.environment(),
            "REDIS_URL": "stub://",
            "WORKER_OPERATOR": "ada",
            "WORKER_TENANT": "",
            "COLUMNS": "120",
            **environment,
        }
        before = console.width
        # Where pytest runs in several processes, the terminal's width was read when this was imported.
        console.width = int(settings["COLUMNS"])
        try:
            done = CliRunner().invoke(app, [str(a) for a in arguments], env=settings)
        finally:
            console.width = before
            # The test's own again.
            session.configure(self.database.worker_url, operator_database_url=self.database.operator_url)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == status, done.output
        return done

    def json(self, *arguments: object, status: int = 0, **environment: str) -> Any:
        """Run a command that says one JSON value."""
        return json.loads(self(*arguments, "--json", status=status, **environment).stdout)

    def add_tenant(self, name: str) -> UUID:
        """Add a tenant."""
        with psycopg.connect(self.database.admin_url) as connection:
            row = connection.execute("INSERT INTO tenants (name) VALUES (%s) RETURNING id", [name]).fetchone()
        assert row is not None
        return UUID(str(row[0]))
