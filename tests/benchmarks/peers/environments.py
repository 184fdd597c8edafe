"""Environments with nothing in them but one peer, made once and kept."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from tests.benchmarks.peers.peers import Peer

#: Whoever works in Postgres does so with the driver that we have, and in the same version.
_DRIVER = (f"psycopg[binary]=={version('psycopg')}", f"SQLAlchemy=={version('SQLAlchemy')}")
_ROOT = str(Path(__file__).parents[3])
#: What they stand on, where they do.
_BELOW = ("asyncpg", "hiredis", "kombu", "redis", "taskiq", "uvloop")
#: Whoever speaks with Redis has hiredis, as we do, and whose worker or command takes uvloop where it is has that.
PACKAGES = {
    "celery": ("celery[redis]", "hiredis", *_DRIVER),
    # Not that which runs this, where there is more: redis-py imports OpenTelemetry's SDK wherever it finds it.
    "dramaturg": ("--editable", _ROOT, *_DRIVER),
    "dramatiq": ("dramatiq[redis]==2.2.1", "hiredis", *_DRIVER),
    "oban": ("oban", "psycopg[binary]", "uvloop"),
    "pgqueuer": ("pgqueuer[asyncpg,cli]", "uvloop"),
    "procrastinate": ("procrastinate", "psycopg[binary]"),
    "rq": ("rq", "hiredis"),
    "taskiq": ("taskiq-redis", "hiredis", "uvloop"),
}


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
    made, packages = folder / peer.environment, PACKAGES[peer.environment]
    complete = made / "complete"
    if not complete.exists() or complete.read_text().split() != list(packages):
        python = python_for(peer)
        if python is None:
            return None
        if not complete.exists():
            subprocess.run([python, "-m", "venv", "--clear", str(made)], check=True)
        pip = [str(made / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", *packages]
        subprocess.run(pip, check=True, capture_output=True)
        complete.write_text("\n".join(packages) + "\n")
    return made / "bin"


def versions_of(peer: Peer, programs: Path) -> dict[str, str]:
    """Return the versions of what makes this peer."""
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
    installed = dict(line.split(" ", 1) for line in listed.stdout.splitlines())
    asked = (peer.environment, "dramatiq", *PACKAGES[peer.environment], *_BELOW)
    names = {name.split("[")[0].split("==")[0].lower() for name in asked}
    return {name: version for name, version in sorted(installed.items()) if name in names}
