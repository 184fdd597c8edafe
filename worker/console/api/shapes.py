"""The shapes of answers, made from the library's own, so that a field that is added there is here, too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, get_type_hints

from pydantic import BaseModel, create_model

from db.failed import Event, FailedJob, FailedJobSummary, Group
from db.replays.runs import Replay, ReplaySettings
from worker.replay.words import in_json


def shape(name: str, of: type, *, but: tuple[str, ...] = (), **more: Any) -> type[BaseModel]:
    """Return the model of a dataclass.

    Arguments:
      name: What it is called in the schema.
      of: The dataclass.
      but: Fields that are left out.
      more: Types of others that are added, by name.
    """
    hints = get_type_hints(of)
    # Whatever has a default here is there in every answer.
    own: dict[str, Any] = {f.name: (hints[f.name], ...) for f in fields(of) if f.name not in but}
    added: dict[str, Any] = {each: (kind, ...) for each, kind in more.items()}
    return create_model(name, __doc__=of.__doc__, **{**own, **added})


def plain(value: Any, **more: Any) -> dict[str, Any]:
    """Return the fields of a dataclass, and others."""
    return {**{f.name: getattr(value, f.name) for f in fields(value)}, **more}


Failure = shape("Failure", FailedJobSummary, tenant_name=str | None)
FailureGroup = shape("Group", Group, open=int, regressed=bool)
Settings = shape("ReplaySettings", ReplaySettings, but=("ramp", "edit"), ramp=list[int], edit=dict[str, Any] | None)
AReplay = shape(
    "Replay",
    Replay,
    but=("filter", "settings", "come_to"),
    filter=dict[str, Any],
    settings=Settings,
    under_way=int,
    not_sent=int,
)
AnEvent = shape("Event", Event)
WholeFailure = shape("WholeFailure", FailedJob, tenant_name=str | None)


def failure(job: FailedJobSummary, names: Mapping[Any, str]) -> dict[str, Any]:
    """Return a failed job, in brief or in full, with its tenant's name."""
    return plain(job, tenant_name=names.get(job.tenant_id) if job.tenant_id else None)


def group(found: Group) -> dict[str, Any]:
    """Return a group."""
    return plain(found, open=found.open, regressed=found.regressed)


def replay(found: Replay) -> dict[str, Any]:
    """Return a replay."""
    return in_json(found)
