"""``worker failed edit``: changes what a job is called with, and sends it again."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from dramatiq import Broker

from db.failed.statuses import IllegalMove
from db.replays.claims import Candidate
from db.replays.edits import Arguments, Edit
from db.replays.runs import ReplaySettings
from db.session import operator_transaction
from middleware.redaction import Redactor
from worker.cli.common import console, fail
from worker.cli.failed.confirm import can_be_asked
from worker.cli.failed.editor import in_editor
from worker.cli.failed.exits import NOTHING
from worker.cli.failed.looks import heading
from worker.cli.failed.options import AsJson, AsTenant, Yes, access
from worker.cli.failed.retry import check_actor
from worker.cli.operator import By, operator_name
from worker.cli.replays.options import As, Detach, Module, Reason
from worker.cli.replays.report import run, show_changed
from worker.failed.asked import NoSuchJob, find_id
from worker.redis_client import make_redis
from worker.replay import editing
from worker.replay.application import import_application
from worker.replay.making import make_today
from worker.replay.messages import NotReplayable
from worker.replay.today import Today
from worker.settings import Settings
from worker.text import one_line, short

_PANEL = "What to change"


def edit(
    ident: Annotated[str, typer.Argument(metavar="ID", help="A job's id, or what it begins with.")],
    values: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=JSON", help="Give one argument this value.", rich_help_panel=_PANEL),
    ] = None,
    kwargs: Annotated[
        str | None, typer.Option(metavar="JSON", help="All arguments by name: an object.", rich_help_panel=_PANEL)
    ] = None,
    args: Annotated[
        str | None, typer.Option(metavar="JSON", help="All arguments by position: an array.", rich_help_panel=_PANEL)
    ] = None,
    editor: Annotated[
        bool,
        typer.Option("--editor", help="Change them in $EDITOR, as on a terminal by default.", rich_help_panel=_PANEL),
    ] = False,
    actor: As = None,
    module: Module = None,
    detach: Detach = False,
    reason: Reason = None,
    yes: Yes = False,
    as_tenant: AsTenant = None,
    as_json: AsJson = False,
    by: By = None,
) -> None:
    """Change the arguments of one job and send it again. The original is kept as it was.

    What is new is checked against the actor's signature. For operators: the arguments are shown redacted, but in the
    editor, which shows them as they are. Exit status 0 where it succeeded, else 3.
    """
    with access(as_tenant) as work:
        if work.tenant_id is not None:
            raise ValueError(
                "edit is for operators: whoever is bound to a tenant cannot read what a job was called with"
            )
        asked = _Asked(values, kwargs, args, editor)
        who = operator_name(by)
        settings = Settings.load()
        broker = import_application(module or ())
        check_actor(broker, actor)
        job = _find(ident)
        draft = _draft(job, settings, actor)
        change = Edit(draft.was, asked.changed(draft, broker))
        changed = editing.changes(change, broker, draft.actor_name, Redactor(settings.redact_keys))
        if not changed:
            fail("nothing was changed: the arguments are as they were")
        with make_redis(settings) as client:
            _check(draft, change.after, make_today(settings, broker, client, knows_all=True))
        if not as_json:
            heading(f"{one_line(job.task_name)}, job {short(job.id)}: what changes, redacted")
            show_changed(changed)
            console.print()
        if not yes and can_be_asked() and not typer.confirm("Send it so?", err=True):
            fail("nothing was changed")
        with operator_transaction() as session:
            replay_id = editing.start_edited(
                session,
                job,
                change,
                ReplaySettings(actor=actor),
                changed,
                keys=settings.keys,
                by=who,
                reason=reason,
            )
        run(replay_id, work, broker, by=who, detach=detach, as_json=as_json)


class _Asked:
    """What is to be changed, as it was typed.

    Raises:
      ValueError: When it is none, or not JSON, or of another kind.
    """

    def __init__(self, values: list[str] | None, kwargs: str | None, args: str | None, editor: bool) -> None:
        self._values = dict(self._named(value) for value in values or ())
        self._kwargs = editing.parsed("--kwargs", kwargs, dict) if kwargs is not None else None
        self._args = editing.parsed("--args", args, list) if args is not None else None
        said = bool(self._values) or self._kwargs is not None or self._args is not None
        if editor and said:
            raise ValueError("--editor is instead of --set, --kwargs and --args")
        if not said and not editor and not can_be_asked():
            raise ValueError("say what to change: --set NAME=JSON, --kwargs JSON, --args JSON, or --editor")
        self._editor = not said

    @staticmethod
    def _named(value: str) -> tuple[str, Any]:
        name, equals, said = value.partition("=")
        if not equals or not name.strip():
            raise ValueError(f"--set must be NAME=JSON, not {name!r}")
        return name.strip(), editing.parsed(f"--set {name.strip()}", said, object)

    def changed(self, draft: editing.Draft, broker: Broker) -> Arguments:
        """Return the arguments as they are to be."""
        was = draft.was
        if self._editor:
            return _edited(was)
        if not draft.known and self._kwargs is None and self._args is None:
            raise ValueError("what it was called with is not known: say all of it, with --kwargs JSON or --args JSON")
        given = Arguments(
            was.args if self._args is None else self._args, was.kwargs if self._kwargs is None else self._kwargs
        )
        return editing.with_values(given, self._values, broker, draft.actor_name)


def _edited(was: Arguments) -> Arguments:
    """Return what somebody makes of arguments in ``$EDITOR``; its file is theirs alone, and removed at once."""
    text = json.dumps({"args": was.args, "kwargs": was.kwargs}, indent=2, ensure_ascii=False)
    said = in_editor(text, ".json")
    if said == text:
        return was
    value = editing.parsed("what was saved", said, dict)
    args, kwargs = value.get("args", []), value.get("kwargs", {})
    if set(value) - {"args", "kwargs"} or not isinstance(args, list) or not isinstance(kwargs, dict):
        raise ValueError('what was saved must be {"args": [...], "kwargs": {...}}')
    return Arguments(args, kwargs)


def _find(ident: str) -> Candidate:
    with operator_transaction() as session:
        try:
            return editing.editable(session, find_id(session, ident))
        except (LookupError, NoSuchJob, IllegalMove) as e:
            fail(str(e), NOTHING)


def _draft(job: Candidate, settings: Settings, actor: str | None) -> editing.Draft:
    try:
        return editing.draft(job, actor, keys=settings.keys, renamed=settings.renamed)
    except NotReplayable as e:
        fail(f"{short(job.id)} cannot be sent again: {e}", NOTHING)


def _check(draft: editing.Draft, after: Arguments, today: Today) -> None:
    """Check the new arguments against today's code."""
    try:
        draft.check(after, today)
    except NotReplayable as e:
        fail(f"{short(draft.job.id)} would not run so: {e}", NOTHING)
