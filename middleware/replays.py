"""What a message carries that is a replay, and what its success does: it closes the row of the failure.

A message that was sent again names its row and the item of its replay in its options. Where it succeeds, the row is
resolved before the message leaves Redis; where Postgres is away, that goes into the spool in the step in which it does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from dramatiq import Broker, MessageProxy
from dramatiq.middleware import Middleware
from loguru import logger

from db.failures import Success
from db.tenancy import current_tenant
from middleware.deliveries import REPLAY, Delivery
from middleware.process_facts import process_name

OPTION: Final = REPLAY


def option(row: UUID, item: UUID) -> dict[str, str]:
    """Return what a replayed message carries."""
    return {"row": str(row), "item": str(item)}


def replay_of(options: Mapping[str, Any]) -> tuple[UUID, UUID] | None:
    """Return the row and the item that a message names; None where it is no replay, or says so wrongly."""
    said = options.get(OPTION)
    if not isinstance(said, Mapping):
        return None
    try:
        return UUID(said["row"]), UUID(said["item"])
    except (KeyError, ValueError, AttributeError, TypeError):
        return None


class ReplayOutcomes(Middleware):
    """Closes the row of a replay that has succeeded, before the message is acknowledged. After ``DeadLetters``, which
    does the same for one that has failed.

    Arguments:
      record: Writes a success, or raises soon; :meth:`db.failure_writer.FailureWriter.record`.
      worker_name: Of this process; the host's name by default. The process id is added.
      clock: Returns the time, with a time zone.
    """

    def __init__(
        self,
        record: Callable[[Success], object],
        *,
        worker_name: str | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._record = record
        self._worker_name = worker_name
        self._clock = clock

    def before_ack(self, broker: Broker, message: MessageProxy) -> None:
        if not isinstance(message, Delivery):
            return
        # Of an attempt to end it before this one.
        message.to_spool = None
        found = replay_of(message.options)
        if found is None or not message.succeeded:
            return
        row, item = found
        success = Success(
            delivery_id=message.redis_id,
            task_id=message.message_id,
            task_name=message.actor_name,
            worker=process_name(self._worker_name),
            tenant_id=current_tenant(),
            replayed_row=row,
            replay_item=item,
            succeeded_at=self._clock(),
        )
        try:
            self._record(success)
        except Exception as e:  # noqa: BLE001 - whatever it is, the message has succeeded, and must not run again for it
            logger.error(
                "the success of replayed message {} for actor {} goes into the spool: {}",
                message.message_id,
                message.actor_name,
                type(e).__name__,
            )
            message.to_spool = json.dumps(success.as_json()).encode()
