"""A dead message as it is recorded, and as it waits in the spool."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any
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
            values[name] = None if values[name] is None else UUID(values[name])
        for name in _TIMES:
            values[name] = None if values[name] is None else datetime.fromisoformat(values[name])
        if values.get("original") is not None:
            values["original"] = b64decode(values["original"])
        return cls(**values)


_IDS = ("tenant_id", "correlation_id")
_TIMES = ("last_retry_at", "failed_at")
