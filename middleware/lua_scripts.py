"""The scripts that Redis runs for the broker, each one step that happens whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis
from dramatiq.errors import ConnectionClosed

Argument = str | bytes | int


class Scripts:
    """Runs the scripts of ``middleware/lua`` in one namespace.

    Raises (from every call):
      ConnectionClosed: For any error of Redis, whatever its class: Dramatiq's threads wait and try again on this one,
        and end on most others.
    """

    def __init__(self, client: redis.Redis, namespace: str) -> None:
        self._namespace = namespace
        self._scripts: dict[str, Callable[..., Any]] = {
            path.stem: client.register_script(path.read_text("utf-8"))
            for path in sorted((Path(__file__).parent / "lua").glob("*.lua"))
        }

    def __call__(self, name: str, *arguments: Argument) -> Any:
        try:
            return self._scripts[name](keys=[self._namespace], args=arguments)
        except (redis.RedisError, OSError) as e:
            raise ConnectionClosed(f"Redis: {e}") from e
