"""The command ``worker``, also ``python -m worker``."""

from __future__ import annotations

import io
import sys
from contextlib import suppress
from pathlib import Path

from worker.hidden_packages import explain, hidden_by


def main() -> None:
    """Run the command line; what the user can mend is said in a line, without a traceback, with exit status 2."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal without Unicode shows an escape: what a failure holds is no reason to show nothing of it.
        sys.stdout.reconfigure(errors="backslashreplace")
    # `worker check` says so itself, among what else it finds.
    if sys.argv[1:2] != ["check"]:
        for path in hidden_by(Path.cwd()):
            sys.exit(f"worker: {' '.join(explain(path))}")
    from db.errors import ConfigurationError

    try:
        if sys.argv[1:2] == ["dramatiq"]:
            # Its processes are forked from this one, and import for themselves what they need.
            from worker.dramatiq_command import run

            sys.exit(run(sys.argv[2:]))
        from worker.cli import app

        _configure_logs()
        hook = sys.excepthook
        try:
            app()
        except Exception:
            # Typer puts one of its own there.
            sys.excepthook = hook
            raise
    except ConfigurationError as e:
        sys.stderr.write(f"worker: {e}\n")
        sys.exit(2)


def _configure_logs() -> None:
    from db.errors import ConfigurationError
    from worker.logs.setup import configure_process
    from worker.settings import Settings

    # A command that needs settings says what is wrong with them.
    with suppress(ConfigurationError):
        # Libraries have nothing to say to whoever looks at a table.
        configure_process(Settings.load(), library_level="WARNING")


if __name__ == "__main__":
    main()
