"""The command line: each command group in a module of its own, none of them with logic that a program could want."""

from __future__ import annotations

import typer

from worker.cli import (
    alerts,
    attribution,
    check,
    console,
    demo,
    dramatiq,
    events,
    failed,
    metrics,
    migrate,
    offboard,
    queues,
    replays,
    schedule,
    scheduler,
    shares,
    spool,
    tenants,
    workers,
)

app = typer.Typer(
    name="worker",
    help="Dramaturg: Dramatiq workers whose every failure is one row that you can understand, replay and close.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(tenants.app, name="tenants", help="Whom work is done for.")
tenants.app.command("offboard")(offboard.offboard)
app.add_typer(events.app, name="events", help="What attribution is computed from.")
app.add_typer(failed.app, name="failed", help="What failed: find it, understand it, send it again, close it.")
app.add_typer(queues.app, name="queues", help="What waits, and who works on it.")
for command in (shares.share_, shares.unshare_, shares.merge_):
    queues.app.command(command.__name__.removesuffix("_"))(command)
app.add_typer(workers.app, name="workers", help="Who works, and on what.")
app.add_typer(replays.app, name="replays", help="What is sent again: how far it is; pause it, resume it, cancel it.")
app.add_typer(schedule.app, name="schedule", help="What is sent by the clock, when it was and will be; send it now.")
app.command("scheduler")(scheduler.scheduler)
app.add_typer(alerts.app, name="alerts", help="Whether alerts arrive; what they are signed with.")
app.add_typer(attribution.app, name="attribution", help="Days that were recomputed for all tenants.")
app.add_typer(console.app, name="console", help="Serve the operations console; make tokens for it.")
app.command("spool")(spool.show)
app.command("metrics")(metrics.metrics)
app.command("check")(check.check)
app.command("migrate")(migrate.migrate)
app.command("demo")(demo.demo)
app.command("dramatiq", context_settings=dramatiq.PASSED_ON)(dramatiq.dramatiq)
