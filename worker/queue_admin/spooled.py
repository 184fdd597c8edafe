"""What failures that wait in the spool are encrypted with."""

from __future__ import annotations

import json
from collections import Counter

import redis

from worker.queue_admin.keys import asking


def sealed_in_spool(client: redis.Redis, namespace: str = "dramatiq") -> Counter[str | None]:
    """Return how many originals each key has sealed of failures that wait for Postgres, by its id; None for those that
    are not encrypted. See :func:`db.failed.originals.sealed_with`.

    Raises:
      ConnectionClosed: For any error of Redis.
    """
    found = Counter[str | None]()
    with asking():
        for _, data in client.hscan_iter(f"{namespace}:__dramaturg__.spool", count=100):
            try:
                failure = json.loads(data)
                if failure.get("original") is not None:
                    found[failure.get("original_key")] += 1
            except (ValueError, AttributeError, TypeError):
                # Whatever it is, nothing opens it with a key.
                continue
    return found
