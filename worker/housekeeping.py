"""Queue ``housekeeping``: small jobs that belong to no tenant."""

from __future__ import annotations

from loguru import logger
from sqlalchemy import text

from db.session import operator_transaction
from worker.routing import actor


@actor(tenant_scoped=False, throws=ValueError)
def ping(fail: bool = False) -> None:
    """Go the whole way of a job: through Redis, a worker and Postgres.

    Arguments:
      fail: Fail on purpose, to see the way of a failure.

    Raises:
      ValueError: When asked to.
    """
    if fail:
        raise ValueError("housekeeping ping failure requested")
    with operator_transaction() as session:
        now = session.execute(text("SELECT now()")).scalar_one()
    logger.info("pong, {} by Postgres' clock", now.isoformat(timespec="milliseconds"))
