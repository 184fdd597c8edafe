"""``worker scheduler``: the process that sends what has a schedule."""

from __future__ import annotations

from typing import Annotated

import typer

from db.errors import ConfigurationError
from middleware.lossless_broker import LosslessBroker
from worker.cli.common import explained
from worker.replay.application import import_application
from worker.scheduler.jobs import jobs_of
from worker.settings import Settings

Module = Annotated[
    list[str] | None, typer.Option(metavar="MODULE", help="Import these actors, beside those of the Procfile.")
]


def scheduler(module: Module = None) -> None:
    """Send what has a schedule when its time comes. Of any number of these, one sends each."""
    with explained():
        settings = Settings.load()
        broker = import_application(module or ())
        if not isinstance(broker, LosslessBroker):
            raise ConfigurationError("REDIS_URL: the scheduler needs Redis, and a broker of this project's on it")
        jobs = jobs_of(broker, settings)
    from worker.scheduler.serving import serve

    serve(settings, broker, jobs)
