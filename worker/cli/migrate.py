"""``worker migrate``."""

from __future__ import annotations

from typing import Annotated

import typer

from worker import migrate as migrations
from worker.cli.common import console, explained
from worker.settings import Settings


def migrate(
    revision: Annotated[str, typer.Argument(help="Where to; a revision, or 'head'.")] = "head",
    down: Annotated[bool, typer.Option("--down", help="Go down to the revision instead; 'base' for all.")] = False,
) -> None:
    """Bring the database up to date, with MIGRATION_DATABASE_URL.

    Takes an empty database or the Celery system's, and drops no row.
    """
    with explained():
        url = Settings.load().migration_url
        if down:
            migrations.downgrade(url, "base" if revision == "head" else revision)
        else:
            migrations.upgrade(url, revision)
    console.print("The database is back at the revision asked for." if down else "The database is up to date.")
