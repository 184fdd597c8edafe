"""``worker failed``: finds, explains and closes failed jobs. A module a command; what they share stands beside them."""

from __future__ import annotations

import typer

from worker.cli.failed import actions, audit, edit, export, groups, keys, purge, retention, retry, show, stats
from worker.cli.failed import list as list_

app = typer.Typer(no_args_is_help=True)
app.command("list")(list_.list_)
app.command("show")(show.show)
app.command("groups")(groups.groups)
app.command("stats")(stats.stats)
app.command("retry")(retry.retry)
app.command("edit")(edit.edit)
app.command("resolve")(actions.resolve)
app.command("abandon")(actions.abandon)
app.command("reopen")(actions.reopen)
app.command("note")(actions.note)
app.command("audit")(audit.audit)
app.command("keys")(keys.keys)
app.command("export")(export.export)
app.command("purge")(purge.purge)
app.command("forget")(purge.forget)
app.add_typer(retention.app, name="retention", help="How long what is kept.")
