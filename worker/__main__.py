"""The command ``worker``, also ``python -m worker``."""

from __future__ import annotations

import sys
from pathlib import Path


def _shadows(folder: Path) -> list[Path]:
    """Return what in ``folder`` hides a package of ours from ``dramatiq``, which looks in the current folder first."""
    ours = Path(__file__).resolve().parent.parent
    if folder.resolve() == ours:
        return []
    return [
        path
        for name in ("worker", "middleware", "db")
        for path in (folder / name / "__init__.py", folder / f"{name}.py")
        if path.is_file() and '__distribution__ = "dramaturg"' not in path.read_text("utf-8", "replace")
    ]


def main() -> None:
    """Run the command line; what the user can mend is said in a line, without a traceback, with exit status 2."""
    for path in _shadows(Path.cwd()):
        name = path.parent.name if path.name == "__init__.py" else path.stem
        sys.exit(
            f"worker: {path} hides the package {name!r} of dramaturg from workers started in this folder. "
            f"Rename it, or move it into a package of your own (myapp.{name})."
        )
    from db.errors import ConfigurationError
    from worker.cli import app

    try:
        app()
    except ConfigurationError as e:
        sys.stderr.write(f"worker: {e}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
