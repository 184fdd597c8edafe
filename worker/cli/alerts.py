"""``worker alerts``: whether alerts arrive, and what they are signed with."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import uuid4

import typer
from rich.text import Text

from worker.alerts.errors import AlertNotDelivered, AlertRefused
from worker.alerts.message import Writer
from worker.alerts.posting import Receiver
from worker.alerts.signing import new_secret
from worker.cli.common import console, explained, fail
from worker.settings import Settings

app = typer.Typer(no_args_is_help=True)


@app.command("test")
def test() -> None:
    """Post a test alert from here, and say what the receiver answered; exit status 2 where it did not take it."""
    with explained():
        settings = Settings.load()
        receiver = Receiver.of(settings)
        if receiver is None:
            fail("ALERT_WEBHOOK_URL is not set, so nobody is alerted", 2)
        alert = Writer.of(settings).test(uuid4(), datetime.now(UTC).timestamp())
        try:
            said = receiver.post(alert)
        except (AlertNotDelivered, AlertRefused) as e:
            fail(str(e), 2)
    signed = "signed" if receiver.keys else "not signed: ALERT_WEBHOOK_SECRETS is not set"
    console.print(Text(f"alert {alert['id']}, {signed}: {said}"), soft_wrap=True)


@app.command("secret")
def secret() -> None:
    """Print a new secret for ALERT_WEBHOOK_SECRETS, which the receiver is to have, too."""
    typer.echo(new_secret())
