"""Who it is that changes something."""

from __future__ import annotations

import getpass
import os
import socket
from typing import Annotated

import typer

By = Annotated[
    str | None, typer.Option("--by", envvar="WORKER_OPERATOR", help="Who you are; your user and host by default.")
]


def operator_name(by: str | None) -> str:
    """Return ``by``, or the user and host that the command runs as."""
    if by is not None and by.strip():
        return by
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        # A container's user need not have a name.
        user = f"uid{os.getuid()}"
    return f"{user}@{socket.gethostname()}"
