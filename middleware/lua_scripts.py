"""The scripts that Redis runs for the broker, each one step that happens whole or not at all."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import redis
from dramatiq.errors import ConnectionClosed

Argument = str | bytes | int

_FOLDER = Path(__file__).parent / "lua"
_INCLUDE = re.compile(r"^ *-- include (\w+)$", re.MULTILINE)


@cache
def texts() -> dict[str, str]:
    """Return the scripts of ``middleware/lua`` by name, with ``shared/NAME.lua`` where one says ``-- include NAME``."""
    shared = {path.stem: path.read_text("utf-8") for path in (_FOLDER / "shared").glob("*.lua")}

    def include(text: str) -> str:
        return _INCLUDE.sub(lambda match: shared[match[1]], text) if "-- include " in text else text

    return {path.stem: include(path.read_text("utf-8")) for path in sorted(_FOLDER.glob("*.lua"))}


class _Script(NamedTuple):
    """A script as it is called: its text, its name in Redis, and a call's first words."""

    text: str
    sha: str
    words: tuple[str | int, ...]


class Scripts:
    """Runs the scripts of ``middleware/lua`` in one namespace.

    It says them on a connection of the client's pool itself: what redis-py does around a command takes as long as the
    rest of it. Retries are the connection's, and so as the client wants them.

    Raises (from every call):
      ConnectionClosed: For any error of Redis, whatever its class: Dramatiq's threads wait and try again on this one,
        and end on most others.
    """

    def __init__(self, client: redis.Redis, namespace: str) -> None:
        self._client = client
        self._scripts = _scripts_of(namespace)

    def __call__(self, name: str, *arguments: Argument) -> Any:
        script = self._scripts[name]
        words = (*script.words, *arguments)
        try:
            try:
                return self._say(words)
            except redis.exceptions.NoScriptError:
                # A server that has not seen it, or was emptied.
                self._client.script_load(script.text)
                return self._say(words)
        except (redis.RedisError, OSError) as e:
            raise ConnectionClosed(f"Redis: {e}") from e

    def _say(self, words: Sequence[Argument]) -> Any:
        pool = self._client.connection_pool
        connection = pool.get_connection()
        try:
            command = connection.pack_command(*words)

            def say() -> Any:
                connection.send_packed_command(command)
                return connection.read_response()

            return connection.retry.call_with_retry(say, lambda _: connection.disconnect())
        except redis.ResponseError:
            raise
        except BaseException:
            # Whoever had it next would read what is answered to this, where that is on its way still.
            connection.disconnect()
            raise
        finally:
            pool.release(connection)


@cache
def _scripts_of(namespace: str) -> dict[str, _Script]:
    return {name: _script_of(text, namespace) for name, text in texts().items()}


def _script_of(text: str, namespace: str) -> _Script:
    sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
    return _Script(text, sha, ("EVALSHA", sha, 1, namespace))
