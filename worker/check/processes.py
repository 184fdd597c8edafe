"""All that is checked of the processes: the Procfile, and what its entries import."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from db.errors import ConfigurationError
from worker.check import procfile
from worker.check.findings import Finding, error, ok, warning
from worker.check.guard import Guard, Task
from worker.check.imported import TIMEOUT, import_entries
from worker.check.procfile import Entry
from worker.procfile import read_procfile
from worker.scheduler.jobs import check_names
from worker.settings import Settings

#: Seconds from SIGTERM to SIGKILL that cannot be changed: https://devcenter.heroku.com/articles/dynos#shutdown
HEROKU_STOP_TIMEOUT = 30


class Processes:
    """The worker entries of a Procfile.

    Arguments:
      environ: The settings.
      folder: Where workers are started.
      path: The Procfile; None for the one in ``folder``, if there is one.
      guard: Explains errors.
    """

    def __init__(self, environ: Mapping[str, str], folder: Path, path: Path | None, guard: Guard) -> None:
        self._environ = environ
        self._folder = folder
        self._path = path
        self._guard = guard
        #: Those that run dramatiq; known after :meth:`check`.
        self.entries = list[Entry]()
        #: Of the Procfile, by name; known after :meth:`check`.
        self.commands: Mapping[str, str] = {}
        #: The queues that importing their modules declares; known after :meth:`import_task` was run.
        self.declared: set[str] = set()

    def check(self, stop_timeout: float) -> Iterator[Finding]:
        """Check what the Procfile says.

        Arguments:
          stop_timeout: Seconds that the host gives a process from SIGTERM to SIGKILL, where it is not Heroku.
        """
        path = self._path or self._folder / "Procfile"
        if self._path is None and not path.exists():
            return
        self.commands = commands = read_procfile(path)
        self.entries, wrong = procfile.read_entries(commands, self._environ)
        if self._environ.get("DYNO"):
            stop_timeout = HEROKU_STOP_TIMEOUT
        if not self.entries and not wrong:
            wrong = [warning("procfile", f"no entry of {path} runs dramatiq", "Add some, as in the README.")]
        findings = [
            *wrong,
            *procfile.judge_processes(self.entries),
            *procfile.judge_stop_timeouts(self.entries, stop_timeout, self._stop_within()),
            *procfile.judge_console(commands, self._environ),
        ]
        yield from findings or [ok("procfile", f"{len(self.entries)} worker entries")]

    def _stop_within(self) -> float:
        try:
            return float(self._environ.get("STOP_WITHIN") or Settings.model_fields["stop_within"].default)
        except ValueError:
            # The settings say so.
            return 0.0

    def import_task(self, settings: Settings) -> Iterator[Task]:
        """Give a task that imports the modules of the entries, where importing the broker can succeed at all."""
        if self.entries and settings.database_url and not settings.stub:
            yield Task(
                lambda: self._guard.run("procfile.imports", lambda: self._import(settings)),
                TIMEOUT + 5,
                error(
                    "procfile.imports",
                    f"importing the modules of the entries took more than {TIMEOUT} seconds",
                    "See which of them does not end.",
                ),
            )

    def _import(self, settings: Settings) -> Iterator[Finding]:
        found = import_entries(self.entries, self._folder, self._environ)
        self.declared = set(found.declared)
        for name, why in found.errors.items():
            yield error(
                "procfile.imports",
                f"{name} would not start: {self._guard.explain(ImportError(why))}",
                "Mend the module, or its name in the Procfile.",
            )
        yield procfile.judge_queues(self.entries, found.queues, found.declared)
        schedule = procfile.judge_schedule(self.commands, found.scheduled, {*settings.schedule_off, *settings.idle})
        if schedule is not None:
            yield schedule
        if not found.errors:
            try:
                check_names(settings, found.scheduled)
            except ConfigurationError as e:
                yield error("settings.schedule", str(e), "Mend the setting: no scheduler would start.")
