"""What the console knows of the application's code: its actors, for dry runs and edits; and runs what is sent again."""

from __future__ import annotations

import threading
from pathlib import Path
from uuid import UUID

from dramatiq import Broker

from db.errors import ConfigurationError
from worker.replay.application import import_application
from worker.settings import Settings


class Deployment:
    """The application as its workers import it, once, when it is first needed.

    Arguments:
      settings: Of the console.
      folder: Where the Procfile is; the current one by default.
    """

    def __init__(self, settings: Settings, folder: Path | None = None) -> None:
        self.settings = settings
        self._folder = folder
        self._lock = threading.Lock()
        self._broker: Broker | None = None
        self._wrong: str | None = None

    def load(self) -> None:
        """Import it now; what is wrong is kept, and said by :meth:`broker`."""
        with self._lock:
            if self._broker is not None or self._wrong is not None:
                return
            try:
                self._broker = import_application(folder=self._folder)
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

    def run_soon(self, replay_id: UUID) -> None:
        """Have a replay run that was made; workers that consume housekeeping take it within seconds."""
