"""Changes the arguments of a failed job, and says what would be another than before."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any
from uuid import UUID

from dramatiq import Broker
from sqlalchemy.orm import Session

from db.errors import KeyMissing, SealBroken
from db.failed.events import write_event
from db.replays import claims, edits, single
from db.replays.claims import Candidate
from db.replays.edits import Arguments, Edit
from db.replays.runs import Replay, ReplaySettings
from db.sealing import Keys
from db.session import tenant_of
from middleware.redaction import Redactor
from middleware.signatures import parameters_of, positional_names
from worker.replay.messages import ArgumentsUnknown, content_of
from worker.replay.today import Today


@dataclass(frozen=True, slots=True)
class Draft:
    """A job whose arguments are to be changed.

    Attributes:
      job: Which.
      actor: The actor that is to run it, where an operator says another than its own.
      actor_name: The one that runs it.
      was: What it was called with, as it is; nothing where that is not known.
      known: Whether it is.
      keys: Of ``FAILED_JOB_KEYS``.
      renamed: Today's names of actors that had others.
    """

    job: Candidate
    actor: str | None
    actor_name: str
    was: Arguments
    known: bool
    keys: Keys | None
    renamed: Mapping[str, str]

    def check(self, after: Arguments, today: Today) -> None:
        """Check new arguments against the code, the tenants and the workers of today.

        Raises:
          NoConsumer: When no worker would take it at this moment.
          NotReplayable: When it would not run so.
        """
        content = content_of(self.job, keys=self.keys, actor=self.actor, edit=after, renamed=self.renamed)
        today.check(content, self.job.tenant_id)


def draft(job: Candidate, actor: str | None, *, keys: Keys | None, renamed: Mapping[str, str]) -> Draft:
    """Begin to change the arguments of a job; see :class:`Draft`.

    Raises:
      NotReplayable: When it cannot be sent again, however it is changed.
    """
    known = True
    try:
        content = content_of(job, keys=keys, actor=actor, renamed=renamed)
    except ArgumentsUnknown:
        known = False
        content = content_of(job, keys=keys, actor=actor, edit=Arguments([], {}), renamed=renamed)
    was = Arguments(list(content.args), dict(content.kwargs))
    return Draft(job, actor, content.actor_name, was, known, keys, renamed)


def editable(session: Session, failed_job_id: UUID) -> Candidate:
    """Return a job that can be changed and sent again.

    Arguments:
      session: An operator's: it reads originals.

    Raises:
      LookupError: When there is none.
      IllegalMove: When it cannot be sent again as it stands; the message says why.
    """
    single.check(session, failed_job_id)
    job = claims.candidate(session, failed_job_id)
    if job is None:
        raise LookupError(f"there is no failed job {failed_job_id}")
    return job


def parsed(name: str, said: str, kind: type) -> Any:
    """Return what JSON says. An error does not repeat it: it may be a secret.

    Arguments:
      name: What it is called, for the error.
      said: What somebody typed.
      kind: What it must be: ``dict``, ``list`` or ``object``.

    Raises:
      ValueError: When it is not JSON, or of another kind.
    """
    try:
        value = json.loads(said)
    except (ValueError, RecursionError) as e:
        at = f", at character {e.pos + 1}" if isinstance(e, json.JSONDecodeError) else ""
        raise ValueError(f"{name} is not JSON{at}; text stands in quotes, as '\"text\"'") from None
    if not isinstance(value, kind):
        wanted = 'an object, as {"name": 1}' if kind is dict else "an array, as [1, 2]"
        raise ValueError(f"{name} must be {wanted}, not {type(value).__name__}")  # noqa: TRY004 - input, not a type
    return value


@dataclass(frozen=True, slots=True)
class Field:
    """An argument in a form.

    Attributes:
      key: What the form calls it: ``args.0``, ``kwargs.name``.
      name: What its parameter is called, or its place where that is not known.
      value: As JSON, not redacted; None where it is not given.
      required: Whether the actor wants it.
    """

    key: str
    name: str
    value: str | None
    required: bool = False


def in_fields(arguments: Arguments, broker: Broker, actor_name: str) -> list[Field]:
    """Return arguments for a form, in order; then the parameters that were not given."""
    parameters = parameters_of(broker, actor_name) or {}
    names = positional_names(broker, actor_name, len(arguments.args))

    def named(n: int) -> str:
        return names[n] if n < len(names) and names.count(names[n]) == 1 else f"argument {n + 1}"

    given = [Field(f"args.{n}", named(n), as_text(value)) for n, value in enumerate(arguments.args)]
    given += [Field(f"kwargs.{name}", name, as_text(value)) for name, value in arguments.kwargs.items()]
    known = {field.name for field in given}
    return given + [
        Field(f"kwargs.{name}", name, None, required=parameter.default is inspect.Parameter.empty)
        for name, parameter in parameters.items()
        if name not in known
        and parameter.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    ]


def takes_any_name(broker: Broker, actor_name: str) -> bool:
    """Tell whether an actor takes arguments of names that it does not know, or may."""
    parameters = parameters_of(broker, actor_name)
    return parameters is None or any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())


def from_fields(said: Mapping[str, str], fields: list[Field]) -> Arguments:
    """Return what a form says; what is left empty is left out.

    Arguments:
      said: By the fields' keys; ``kwargs.`` and any name adds one.
      fields: The form's.

    Raises:
      ValueError: When something is not JSON, or left out in the middle; the message names it.
    """
    args: list[Any] = []
    left_out = ""
    by_position = [field for field in fields if field.key.startswith("args.")]
    for field in by_position:
        text = said.get(field.key, "")
        if not text.strip():
            left_out = left_out or field.name
        elif left_out:
            raise ValueError(f"{left_out} cannot be left out: {field.name} is given by position after it")
        else:
            args.append(parsed(field.name, text, object))
    kwargs = {
        key.removeprefix("kwargs."): parsed(key.removeprefix("kwargs."), text, object)
        for key, text in said.items()
        if key.startswith("kwargs.") and text.strip()
    }
    return Arguments(args, kwargs)


def as_text(value: object) -> str:
    """Return a value as JSON for somebody to change: on lines, and what cannot be seen as escapes."""
    text = json.dumps(value, ensure_ascii=False)
    if len(text) > 80 and isinstance(value, dict | list):
        text = json.dumps(value, ensure_ascii=False, indent=2)
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


@dataclass(frozen=True, slots=True)
class Changed:
    """An argument that an edit changes, for the eye: as JSON, redacted. None where there is none."""

    name: str
    before: str | None
    after: str | None


def with_values(arguments: Arguments, values: Mapping[str, Any], broker: Broker, actor_name: str) -> Arguments:
    """Return ``arguments`` with some that are named set, wherever they stand: by position, or by name."""
    names = positional_names(broker, actor_name, len(arguments.args))
    args, kwargs = list(arguments.args), dict(arguments.kwargs)
    for name, value in values.items():
        if names.count(name) == 1:
            args[names.index(name)] = value
        else:
            kwargs[name] = value
    return Arguments(args, kwargs)


def changes(edit: Edit, broker: Broker, actor_name: str, redact: Redactor) -> list[Changed]:
    """Return the arguments that an edit changes, redacted by their names and by what they look like."""
    before, after = (_by_name(arguments, broker, actor_name) for arguments in (edit.before, edit.after))
    return [
        Changed(name, _shown(redact, name, before), _shown(redact, name, after))
        for name in dict.fromkeys([*before, *after])
        if name not in before or name not in after or _differ(before[name], after[name])
    ]


def shown_of(session: Session, replay: Replay, keys: Keys | None) -> list[Changed] | None:
    """Return what arguments of a replay's job were and were edited to, redacted; None where none were, or the session
    is bound to a tenant and may not know, or whoever has the key is elsewhere."""
    if replay.settings.edit is None or tenant_of(session) is not None:
        return None
    try:
        edit_id, (job_id,) = UUID(str(replay.settings.edit.get("id"))), replay.filter.ids
        found = edits.get(session, edit_id, job_id, keys)
    except (KeyMissing, SealBroken, ValueError):
        # Another's deployment may have the key; and whoever may make a replay may write anything there.
        return None
    return None if found is None else [Changed(**one) for one in found.shown]


def start_edited(
    session: Session,
    job: Candidate,
    edit: Edit,
    settings: ReplaySettings,
    changed: list[Changed],
    *,
    keys: Keys | None,
    by: str,
    reason: str | None = None,
) -> UUID:
    """Make a replay of one job with other arguments than its own, which are kept beside its original; return its id.

    Its history says which arguments were changed, and not to what: that is for operators.

    Arguments:
      session: An operator's.
      job: Which.
      edit: Its arguments, before and after.
      settings: Otherwise how it goes.
      changed: What differs; see :func:`changes`.
      keys: Of ``FAILED_JOB_KEYS``.
      by: Who.
      reason: Why.

    Raises:
      ValueError: When ``by`` or ``reason`` cannot be so, or the session is bound to a tenant.
      OnItsWay: When the job is being sent again already.
      IllegalMove: When it cannot be, as it stands by now.
    """
    edit_id = edits.keep(session, job.id, replace(edit, shown=[asdict(one) for one in changed]), keys)
    names = [one.name for one in changed]
    said = replace(settings, edit={"id": str(edit_id), "changed": names})
    write_event(
        session,
        "edited",
        by=by,
        reason=reason,
        failed_job_id=job.id,
        tenant_id=job.tenant_id,
        after={"arguments": names, "edit_id": str(edit_id)},
    )
    return single.create(session, job.id, said, by=by, reason=reason)


def _differ(one: object, other: object) -> bool:
    # To Python 1, 1.0 and True are one.
    return json.dumps(one, sort_keys=True) != json.dumps(other, sort_keys=True)


def _by_name(arguments: Arguments, broker: Broker, actor_name: str) -> dict[str, Any]:
    """Return arguments by the names of their parameters; those that have none of their own by their place."""
    names = positional_names(broker, actor_name, len(arguments.args))
    named = {
        names[n] if n < len(names) and names.count(names[n]) == 1 else f"argument {n + 1}": value
        for n, value in enumerate(arguments.args)
    }
    return {**named, **arguments.kwargs}


def _shown(redact: Redactor, name: str, values: Mapping[str, Any]) -> str | None:
    if name not in values:
        return None
    # By its name, too.
    (value,) = redact.value({name: values[name]}).values()
    return json.dumps(value, ensure_ascii=False)
