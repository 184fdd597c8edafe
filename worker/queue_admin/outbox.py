"""What waits in the outbox, for whoever looks at queues and removes messages from them."""

from __future__ import annotations

from collections import Counter
from uuid import UUID

from db import outbox
from db.failed.actions import Begin
from middleware.lua_scripts import Scripts
from middleware.relay import REMEMBER

#: Messages that are removed in one transaction.
AT_ONCE = 500


def count_outbox(
    begin: Begin, *, queue: str | None = None, tenant_id: UUID | None = None, actor: str | None = None
) -> Counter[str]:
    """Return how many messages wait in the outbox, by queue. The arguments are those of :func:`remove_from_outbox`.

    Raises:
      sqlalchemy.exc.SQLAlchemyError: When Postgres cannot be asked.
    """
    with begin() as session:
        found = outbox.by_queue(session, queue=queue, tenant_id=tenant_id, actor=actor)
    return Counter({one.queue: one.count for one in found})


def remove_from_outbox(
    begin: Begin, run: Scripts, *, queue: str | None = None, tenant_id: UUID | None = None, actor: str | None = None
) -> Counter[str]:
    """Remove messages from the outbox, so that they never reach Redis, and return how many, by queue.

    Those that are in Redis already are not counted: look for them there, afterwards. Whoever calls it has written an
    event of it before.

    Arguments:
      begin: :func:`db.session.operator_transaction`.
      run: The scripts, in the namespace of the queues.
      queue, tenant_id: Of which and of whom; of any where it is None.
      actor: Which; with a dot at its beginning, all whose names end so.

    Raises:
      ConnectionClosed: For any error of Redis. What was removed by then is gone.
      sqlalchemy.exc.SQLAlchemyError: When Postgres cannot be asked.
    """
    removed = Counter[str]()
    while True:
        with begin() as session:
            found = outbox.find(session, queue=queue, tenant_id=tenant_id, actor=actor, limit=AT_ONCE)
            if not found:
                return removed
            # First: whoever has read them may be about to relay them.
            withdrawn = run("withdraw_replays", REMEMBER, *(redis_id for _, redis_id, _ in found))
            gone = outbox.remove(session, [row_id for row_id, _, _ in found])
        removed.update(
            name for (row_id, _, name), is_so in zip(found, withdrawn, strict=True) if is_so and row_id in gone
        )
