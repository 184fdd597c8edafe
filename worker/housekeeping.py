"""Queue ``housekeeping``: small jobs that belong to no tenant."""

from __future__ import annotations

import dramatiq
from loguru import logger
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from db.errors import ConfigurationError
from db.session import operator_transaction
from middleware.lossless_broker import LosslessBroker
from worker.arguments import shown
from worker.broker import queues
from worker.live.samples import keep_sample
from worker.routing import actor
from worker.scheduler import Schedule


@actor(tenant_scoped=False, throws=ValueError)
def ping(fail: bool = False) -> None:
    """Go the whole way of a job: through Redis, a worker and Postgres.

    Arguments:
      fail: Fail on purpose, to see the way of a failure.

    Raises:
      ValueError: When asked to, or when ``fail`` is neither true nor false. Not retried.
    """
    if not isinstance(fail, bool):
        raise ValueError(f"fail: must be true or false, not {shown(fail)}")  # noqa: TRY004 - as all bad input
    if fail:
        raise ValueError("housekeeping ping failure requested")
    with operator_transaction() as session:
        now = session.execute(text("SELECT now()")).scalar_one()
    logger.info("pong, {} by Postgres' clock", now.isoformat(timespec="milliseconds"))


# What nobody was there for is no sample of then; and one that waited for a worker is no failure, whatever MAX_AGE says.
# It is tried again before the next one comes.
@actor(
    tenant_scoped=False,
    max_age=None,
    max_retries=1,
    min_backoff=15_000,
    max_backoff=15_000,
    schedule=Schedule("* * * * *", missed="skip"),
)
def sample_queues() -> None:
    """Keep how deep queues are at this moment, for charts: :func:`worker.live.samples.depth_samples` reads it.

    Of several in one minute the first counts, so those that have waited for a worker do no harm. What keeps failing is
    one failed job, and not one a minute: while that is open, the others are a line of the log.

    Raises:
      Exception: Whatever keeps it from it, such as ConnectionClosed when Redis is away, unless it is known. Tried again
        once.
    """
    broker = dramatiq.get_broker()
    if not isinstance(broker, LosslessBroker):
        logger.debug("there is no Redis here whose queues have a depth")
        return
    try:
        kept = keep_sample(broker.client, queues, namespace=broker.namespace)
    except Exception as e:
        if not _is_known():
            raise
        logger.warning("the queues' depths are not kept, as a failed job says already: {}", type(e).__name__)
        return
    if kept:
        logger.debug("the queues' depths are kept")


def _is_known() -> bool:
    """Tell whether a failed job says that no samples are kept; also where that cannot be asked: a line will do then."""
    try:
        with operator_transaction() as session:
            found = session.execute(
                text(
                    "SELECT FROM worker_failed_jobs"
                    " WHERE task_name = :actor AND status IN ('pending', 'in_progress') LIMIT 1"
                ),
                {"actor": sample_queues.actor_name},
            )
            return found.first() is not None
    except (SQLAlchemyError, ConfigurationError):
        return True
