"""Queue ``housekeeping``: small jobs that belong to no tenant."""

from __future__ import annotations

import dramatiq
from loguru import logger
from sqlalchemy import text

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
@actor(tenant_scoped=False, max_age=None, schedule=Schedule("* * * * *", missed="skip"))
def sample_queues() -> None:
    """Keep how deep queues are at this moment, for charts: :func:`worker.live.samples.depth_samples` reads it.

    Of several in one minute the first counts, so those that have waited for a worker do no harm.

    Raises:
      ConnectionClosed: When Redis is away. Tried again.
    """
    broker = dramatiq.get_broker()
    if not isinstance(broker, LosslessBroker):
        logger.debug("there is no Redis here whose queues have a depth")
        return
    if keep_sample(broker.client, queues, namespace=broker.namespace):
        logger.debug("the queues' depths are kept")
