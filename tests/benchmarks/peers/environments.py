"""Environments with nothing in them but one peer, made once and kept."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tests.benchmarks.peers.peers import Peer


def python_for(peer: Peer) -> str | None:
    """Return a Python on which ``peer`` runs; None where this machine has none."""
    if sys.version_info >= peer.python:
        return sys.executable
    newer = (f"python3.{minor}" for minor in range(peer.python[1], peer.python[1] + 4))
    for name in newer:
        found = shutil.which(name)
        # A name may be there for a version that is not.
        if found and subprocess.run([found, "-c", ""], capture_output=True, check=False).returncode == 0:
            return found
    return None


def programs_of(peer: Peer, folder: Path) -> Path | None:
    """Return the folder of a peer's programs, which are installed where they are not; None where they cannot be."""
    if not peer.environment:
        return Path(sys.executable).parent
    made = folder / peer.environment
    if not (made / "complete").exists():
        python = python_for(peer)
        if python is None:
            return None
        subprocess.run([python, "-m", "venv", "--clear", str(made)], check=True)
        pip = [str(made / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", *peer.packages]
        subprocess.run(pip, check=True, capture_output=True)
        (made / "complete").touch()
    return made / "bin"


def versions_of(programs: Path) -> dict[str, str]:
    """Return what is installed beside these programs."""
    listed = subprocess.run(
        [
            str(programs / "python"),
            "-c",
            "from importlib.metadata import distributions as d\nfor x in d(): print(x.name.lower(), x.version)",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(line.split(" ", 1) for line in listed.stdout.splitlines())
