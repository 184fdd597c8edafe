"""The command ``worker``, also ``python -m worker``."""

from __future__ import annotations

import io
import sys
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
    from worker.cli import app

    try:
        app()
    except ConfigurationError as e:
        sys.stderr.write(f"worker: {e}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
