"""A dead message as it is recorded, and as it waits in the spool."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID


@dataclass(frozen=True, slots=True)
class Failure:
    """A dead message as it will be recorded. Text is clean and cut, arguments are redacted; the original is neither."""

    #: The Redis id of the delivery that died; the message id on a broker that has none.
    delivery_id: str
    task_id: str
    task_name: str
    queue: str | None
    worker: str | None
    task_args: list[Any] | None
    task_kwargs: dict[str, Any] | None
    tenant_id: UUID | None
    error_type: str
    exception_class: str
    error_message: str
    traceback: str | None
    retry_count: int
    last_retry_at: datetime | None
    correlation_id: UUID
    failed_at: datetime
    #: What was fetched, byte for byte, for operators; ``None`` on a broker that does not keep it.
    original: bytes | None = field(default=None, repr=False)
    #: Names the key that ``original`` is encrypted with; ``None`` where it is not.
    original_key: str | None = None
    #: What it has in common with its like: 32 hexadecimal characters.
    fingerprint: str | None = None
    #: Its message without the values in it, and the innermost function of the application's own code, as
    #: ``module:function``: what a group of its like is called.
    title: str | None = None
    place: str | None = None
    #: Its last executions, this one at the end, as :class:`Attempt` gives them.
    attempts: list[dict[str, Any]] | None = None
    #: Where it was a replay: of which row, and of which item of a replay.
    replayed_row: UUID | None = None
    replay_item: UUID | None = None
    #: What the remediation notes of a new row begin with, and its history's reason; of most failures there is nothing.
    note: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return it as what JSON can say: ids and times as strings, the original in base64."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        for name in _IDS:
            values[name] = None if values[name] is None else str(values[name])
        for name in _TIMES:
            values[name] = None if values[name] is None else values[name].isoformat()
        if self.original is not None:
            values["original"] = b64encode(self.original).decode("ascii")
        return values

    @classmethod
    def from_json(cls, data: bytes | str) -> Failure:
        """Return what was encoded; what another version added is left out.

        Raises:
          ValueError, KeyError, TypeError: When ``data`` is none of ours.
        """
        values = {name: value for name, value in json.loads(data).items() if name in cls.__slots__}
        for name in _IDS:
            values[name] = None if values.get(name) is None else UUID(values[name])
        for name in _TIMES:
            values[name] = None if values[name] is None else datetime.fromisoformat(values[name])
        if values.get("original") is not None:
            values["original"] = b64decode(values["original"])
        return cls(**values)


class Attempt(NamedTuple):
    """One execution of a message that failed. Text is clean, cut and redacted."""

    #: When it began, or where that is not known, ended.
    at: datetime
    worker: str | None
    exception_class: str
    message: str
    place: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return it as it travels with a message and is kept beside a row."""
        return {
            "at": self.at.isoformat(timespec="milliseconds"),
            "worker": self.worker,
            "exception_class": self.exception_class,
            "message": self.message,
            "place": self.place,
        }


#: Executions that are remembered of a message.
ATTEMPTS_KEPT = 10


class Success(NamedTuple):
    """A message that was sent again because it was dead, and has succeeded."""

    #: As a failure's.
    delivery_id: str
    task_id: str
    task_name: str
    worker: str | None
    tenant_id: UUID | None
    #: The row that it closes, and the item of the replay.
    replayed_row: UUID
    replay_item: UUID
    succeeded_at: datetime

    def as_json(self) -> dict[str, Any]:
        """Return it as what JSON can say."""
        return {
            "kind": "success",
            **self._asdict(),
            "tenant_id": None if self.tenant_id is None else str(self.tenant_id),
            "replayed_row": str(self.replayed_row),
            "replay_item": str(self.replay_item),
            "succeeded_at": self.succeeded_at.isoformat(),
            # For whoever looks into the spool.
            "error_type": "(succeeded)",
        }


#: How a message ended for which Postgres has a row, or is to have one.
Ending = Failure | Success


def ending_from_json(data: bytes | str) -> Ending:
    """Return what was encoded, whichever it is.

    Raises:
      ValueError, KeyError, TypeError: When ``data`` is none of ours.
    """
    values = json.loads(data)
    if values.get("kind") != "success":
        return Failure.from_json(data)
    return Success(
        delivery_id=values["delivery_id"],
        task_id=values["task_id"],
        task_name=values["task_name"],
        worker=values["worker"],
        tenant_id=None if values["tenant_id"] is None else UUID(values["tenant_id"]),
        replayed_row=UUID(values["replayed_row"]),
        replay_item=UUID(values["replay_item"]),
        succeeded_at=datetime.fromisoformat(values["succeeded_at"]),
    )


_IDS = ("tenant_id", "correlation_id", "replayed_row", "replay_item")
_TIMES = ("last_retry_at", "failed_at")
