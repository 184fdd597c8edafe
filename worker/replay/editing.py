"""Changes the arguments of a failed job, and says what would be another than before."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any
from uuid import UUID

from dramatiq import Broker
from sqlalchemy.orm import Session

from db.errors import KeyMissing, SealBroken
from db.failed.events import write_event
from db.failed.filters import Filter
from db.replays import edits, runs
from db.replays.claims import Candidate
from db.replays.edits import Arguments, Edit
from db.replays.runs import Replay, ReplaySettings
from db.sealing import Keys
from db.session import tenant_of
from middleware.redaction import Redactor
from middleware.signatures import positional_names


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
        if name not in before or name not in after or before[name] != after[name]
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
    return runs.create(session, Filter(ids=(job.id,)), said, by=by, reason=reason)


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
