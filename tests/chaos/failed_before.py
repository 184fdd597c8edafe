"""Rows of jobs that failed before the run, with their originals, for replays to send again."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from dramatiq import Message

from db import failed_jobs
from db.failures import Failure
from middleware.fingerprint import fingerprint

#: Rows that are written in one transaction.
AT_ONCE = 250


def failures(
    seed: int, count: int, tenants: Sequence[UUID], actors: Sequence[tuple[str, str]], works: Sequence[dict[str, Any]]
) -> list[Failure]:
    """Return failures of messages that were sent, each of one of ``actors`` (queue, name) with one of ``works``.

    Arguments:
      works: What the actor is told; ``max_retries`` of it is an option of the message.
    """
    rng = random.Random(f"failures {seed}")  # noqa: S311 - to be repeated
    now = datetime.now(UTC)
    found = []
    for n in range(count):
        (queue, actor), work, tenant = rng.choice(actors), dict(rng.choice(works)), rng.choice(tenants)
        redis_id, message_id = (str(UUID(int=rng.getrandbits(128), version=4)) for _ in range(2))
        message: Message[Any] = Message(
            queue_name=queue,
            actor_name=actor,
            args=(work,),
            kwargs={},
            options={
                "redis_message_id": redis_id,
                "tenant_id": str(tenant),
                "max_retries": work.pop("max_retries", 0),
                "correlation_id": message_id,
            },
            message_id=message_id,
        )
        error = ValueError(f"failure of the {work.get('kind')}")
        found.append(
            Failure(
                delivery_id=redis_id,
                task_id=message_id,
                task_name=actor,
                queue=queue,
                worker="before",
                task_args=[work],
                task_kwargs={},
                tenant_id=tenant,
                error_type="validation_error",
                exception_class="ValueError",
                error_message=str(error),
                traceback=None,
                retry_count=0,
                last_retry_at=None,
                correlation_id=UUID(message_id),
                failed_at=now - timedelta(milliseconds=count - n),
                original=message.encode(),
                fingerprint=fingerprint(actor, error),
                title=str(error),
            )
        )
    return found


def record(found: Sequence[Failure]) -> None:
    """Write them."""
    for start in range(0, len(found), AT_ONCE):
        failed_jobs.record_all(found[start : start + AT_ONCE])
