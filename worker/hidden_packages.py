"""Finds modules and packages in a folder that hide ours from workers started there."""

from __future__ import annotations

from pathlib import Path


def hidden_by(folder: Path) -> list[Path]:
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


def explain(path: Path) -> tuple[str, str]:
    """Return what ``path`` hides, and what to do about it, as two sentences."""
    name = path.parent.name if path.name == "__init__.py" else path.stem
    return (
        f"{path} hides the package {name!r} of dramaturg from workers started in this folder.",
        f"Rename it, or move it into a package of your own (myapp.{name}).",
    )
