"""``worker failed keys``: which of ``FAILED_JOB_KEYS`` is needed still, so which may go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import typer
from dramatiq.errors import ConnectionClosed
from rich.text import Text

from db.failed.originals import sealed_with
from db.sealing import SETTING
from db.session import operator_transaction
from worker.cli.common import configure_sessions, console, explained, warn
from worker.cli.failed.looks import grid, say
from worker.cli.failed.options import AsJson
from worker.queue_admin import sealed_in_spool
from worker.redis_client import make_redis
from worker.settings import Settings
from worker.text import counted, one_line, to_json

#: Keys that are not configured that are shown: whoever has SQL of a tenant may write names of some.
_UNKNOWN_AT_MOST: Final = 20


@dataclass(frozen=True, slots=True)
class Key:
    """A key, and what was encrypted with it; without a name, what was not encrypted."""

    key: str | None
    #: Originals and edited arguments in Postgres, and originals in the spool; None where Redis could not be asked.
    kept: int
    spooled: int | None
    #: Whether it is one of the setting; None of what is not encrypted.
    configured: bool | None
    #: Whether it encrypts what comes next.
    encrypts: bool

    @property
    def may_go(self) -> bool:
        """Whether nothing is known to need it."""
        return bool(self.configured) and not self.encrypts and not self.kept and self.spooled == 0


def keys(as_json: AsJson = False) -> None:
    """Show which keys of FAILED_JOB_KEYS are needed still: how much each has encrypted, in Postgres and in the spool.

    Keys are named by an id that tells nothing of them.
    """
    with explained():
        settings = configure_sessions()
        with operator_transaction() as session:
            kept = sealed_with(session)
        found = _all(settings, kept, _spooled(settings))
    if as_json:
        typer.echo(to_json(found))
        return
    table = grid("key", "kept", "in the spool", "")
    for column in table.columns[1:3]:
        column.justify = "right"
    known = [key for key in found if key.configured is not False]
    unknown = [key for key in found if key.configured is False]
    for key in [*known, *unknown[:_UNKNOWN_AT_MOST]]:
        table.add_row(
            Text("(none)", "dim") if key.key is None else Text(one_line(key.key), "bold"),
            f"{key.kept:,}",
            "?" if key.spooled is None else f"{key.spooled:,}",
            _what(key),
        )
    console.print(table)
    if len(unknown) > _UNKNOWN_AT_MOST:
        say(f"and {counted(len(unknown) - _UNKNOWN_AT_MOST, 'other')} that {SETTING} does not hold", "dim")
    for key in found:
        if key.may_go:
            say(f"\n{key.key} may go, once no process has it as its first any more.")


def _spooled(settings: Settings) -> Mapping[str | None, int] | None:
    if settings.stub:
        return None
    try:
        with make_redis(settings) as client:
            return sealed_in_spool(client, settings.redis_namespace)
    except (ConnectionClosed, OSError) as e:
        warn(f"Redis cannot be asked, so nobody knows what the spool needs: {type(e).__name__}")
        return None


def _all(settings: Settings, kept: Mapping[str | None, int], spooled: Mapping[str | None, int] | None) -> list[Key]:
    """Return those that are configured, the one that encrypts first, then others, then what is not encrypted."""
    configured = settings.keys.ids if settings.keys is not None else ()
    others = sorted({key for key in (*kept, *(spooled or ())) if key is not None and key not in configured})
    return [
        Key(
            key,
            kept.get(key, 0),
            None if spooled is None else spooled.get(key, 0),
            None if key is None else key in configured,
            key == (configured[0] if configured else None),
        )
        for key in (*configured, *others, None)
    ]


def _what(key: Key) -> Text:
    if key.key is None:
        return Text(f"not encrypted: {SETTING} is not set" if key.encrypts else "not encrypted", "dim")
    if not key.configured:
        return Text(f"MISSING from {SETTING}: nobody can read these", "bold red")
    if key.encrypts:
        return Text("encrypts what comes next", "green")
    if key.may_go:
        return Text("not needed", "dim")
    return Text("needed" if key.kept or key.spooled else "needed, perhaps", "yellow")
