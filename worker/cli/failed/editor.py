"""Lets a person change a text in their editor."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from pathlib import Path


def in_editor(text: str, suffix: str) -> str:
    """Return what a person makes of a text, in a file that is theirs alone and removed at once.

    Arguments:
      text: What the file says at first.
      suffix: Of its name, by which editors know what it is.

    Raises:
      ValueError: When the editor cannot be started, or ends with an error: the person did not want it.
    """
    # As in git; vi is everywhere.
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    with tempfile.TemporaryDirectory(prefix="worker-") as folder:
        path = Path(folder) / f"arguments{suffix}"
        path.touch(mode=0o600)
        path.write_text(text, "utf-8")
        try:
            subprocess.run([*shlex.split(editor), str(path)], check=True)  # noqa: S603 - their own editor
        except (OSError, ValueError, subprocess.CalledProcessError) as e:
            raise ValueError(f"the editor {editor!r} ended with an error, so nothing was changed: {e}") from None
        return path.read_text("utf-8")
