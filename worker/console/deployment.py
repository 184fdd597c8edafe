"""What the console knows of the application's code: its actors, for dry runs and edits; and runs what is sent again."""

from __future__ import annotations

import socket
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

from dramatiq import Broker

from db.errors import ConfigurationError
from worker import probe
from worker.console.running import Running
from worker.redis_client import make_redis
from worker.replay.application import import_application
from worker.replay.making import make_runner
from worker.replay.runner import Runner
from worker.settings import Settings


class Deployment:
    """The application as its workers import it, once, when it is first needed.

    Arguments:
      settings: Of the console.
      folder: Where the Procfile is; the current one by default.
      imported: Imports it, and returns its broker; the Procfile's modules by default.
    """

    def __init__(
        self, settings: Settings, folder: Path | None = None, imported: Callable[[], Broker] | None = None
    ) -> None:
        self.settings = settings
        self._import = imported or (lambda: import_application(folder=folder))
        self._lock = threading.Lock()
        self._broker: Broker | None = None
        self._wrong: str | None = None
        self._running = Running(self._make_runner)
        #: Held by whoever makes a dry run, which costs much: one at a time.
        self.dry_run = threading.Lock()

    def load(self) -> None:
        """Import it now; what is wrong is kept, and said by :meth:`broker`."""
        with self._lock:
            if self._broker is not None or self._wrong is not None:
                return
            try:
                self._broker = self._import()
            except ConfigurationError as e:
                self._wrong = str(e)

    @property
    def broker(self) -> Broker:
        """The broker that knows every actor.

        Raises:
          ConfigurationError: When a module cannot be imported here.
        """
        self.load()
        if self._broker is None:
            raise ConfigurationError(f"the application cannot be imported here: {self._wrong}")
        return self._broker

    @property
    def wrong(self) -> str | None:
        """Why the application cannot be imported here; None where it can, or nobody has tried yet."""
        return self._wrong

    @property
    def actors(self) -> list[str]:
        """Names of the actors, in order; none where nobody has imported them yet."""
        return sorted(self._broker.actors.keys() - {probe.ACTOR}) if self._broker is not None else []

    def run_soon(self, replay_id: UUID) -> None:
        """Run a replay in this process, at once, or as soon as others that run here let it.

        Where this cannot, or ends, workers that consume ``housekeeping`` run it: they look every few seconds.
        """
        self._running.add(replay_id)

    def close(self) -> None:
        """Leave what runs here to others."""
        self._running.stop()

    def _make_runner(self, wait: Callable[[float], bool]) -> Runner:
        name = f"{socket.gethostname()}/console/{uuid.uuid4()}"
        return make_runner(self.settings, self.broker, make_redis(self.settings), name, wait, knows_all=True)
