"""The scripts that Redis runs for the broker, each one step that happens whole or not at all."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import redis
from dramatiq.errors import ConnectionClosed

Argument = str | bytes | int

_FOLDER = Path(__file__).parent / "lua"


@cache
def texts() -> dict[str, str]:
    """Return the scripts of ``middleware/lua`` by name, with ``shared/NAME.lua`` where one says ``-- include NAME``."""
    shared = {path.stem: path.read_text("utf-8") for path in (_FOLDER / "shared").glob("*.lua")}

    def include(text: str) -> str:
        return re.sub(r"^ *-- include (\w+)$", lambda match: shared[match[1]], text, flags=re.MULTILINE)

    return {path.stem: include(path.read_text("utf-8")) for path in sorted(_FOLDER.glob("*.lua"))}


class Scripts:
    """Runs the scripts of ``middleware/lua`` in one namespace.

    Raises (from every call):
      ConnectionClosed: For any error of Redis, whatever its class: Dramatiq's threads wait and try again on this one,
        and end on most others.
    """

    def __init__(self, client: redis.Redis, namespace: str) -> None:
        self._namespace = namespace
        self._scripts: dict[str, Callable[..., Any]] = {
            name: client.register_script(text) for name, text in texts().items()
        }

    def __call__(self, name: str, *arguments: Argument) -> Any:
        try:
            return self._scripts[name](keys=[self._namespace], args=arguments)
        except (redis.RedisError, OSError) as e:
            raise ConnectionClosed(f"Redis: {e}") from e
