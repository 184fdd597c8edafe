"""Queue ``housekeeping``: small jobs that belong to no tenant."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

import dramatiq
from dramatiq.errors import ConnectionClosed
from dramatiq.middleware import TimeLimitExceeded
from loguru import logger
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from db.errors import ConfigurationError
from db.session import operator_transaction
from middleware.lossless_broker import LosslessBroker
from worker.alerts.errors import AlertNotDelivered, AlertRefused, classify
from worker.alerts.looking import Lookout
from worker.alerts.posting import Receiver
from worker.arguments import shown
from worker.broker import classifier, queues, settings
from worker.live.samples import keep_sample
from worker.routing import actor
from worker.scheduler import Schedule, scheduled_for

#: Tries of an alert, for a day: the waits double from 5 seconds to 10 minutes.
DELIVER_AGAIN: Final = 150
#: After which nobody is told any more that all was well.
STALE: Final = timedelta(minutes=2)

classify(classifier)


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


# What waited behind others looks at the same, and the next is about to come: nothing of it is a failure.
@actor(
    tenant_scoped=False,
    max_age=None,
    max_retries=0,
    time_limit=30_000,
    schedule=Schedule("*/15 * * * * *", missed="skip"),
)
def look_for_alerts() -> None:
    """Look for what somebody should be told of, and send a :func:`deliver_alert` for each; see :mod:`worker.alerts`.

    It is scheduled if ``ALERT_WEBHOOK_URL`` is set. Failures that wait in Redis because Postgres is away are looked at
    first, and without Postgres. What cannot be looked at now, the next one finds.
    """
    broker = dramatiq.get_broker()
    if settings.alert_webhook_url is None or not isinstance(broker, LosslessBroker):
        logger.debug("there is nobody to alert, or nothing to look at")
        return
    lookout = Lookout(
        broker,
        settings,
        deliver_alert,
        # An alert that could not be delivered is no reason for another.
        without=(look_for_alerts.actor_name, deliver_alert.actor_name, send_heartbeat.actor_name),
        begin=operator_transaction,
    )
    try:
        lookout.look_at_spool()
        lookout.look_at_failures()
    except (ConnectionClosed, SQLAlchemyError, TimeLimitExceeded) as e:
        # Not its text: that of a statement is long, and has been said by whoever needed Postgres more.
        logger.warning("what failed cannot be looked at, so nobody is alerted of it: {}", type(e).__name__)


@actor(
    tenant_scoped=False,
    max_age=None,
    time_limit=60_000,
    max_retries=DELIVER_AGAIN,
    min_backoff=5_000,
    max_backoff=600_000,
    throws=(AlertRefused, ValueError),
)
def deliver_alert(alert: dict[str, Any]) -> None:
    """Post an alert to ``ALERT_WEBHOOK_URL``, signed. Sent by :func:`look_for_alerts`.

    Arguments:
      alert: What is posted; its ``id`` is the header ``webhook-id``.

    Raises:
      ValueError: When ``alert`` is none. Not retried.
      worker.alerts.errors.AlertRefused: When the receiver will not have it. Not retried.
      worker.alerts.errors.AlertNotDelivered: When it could have it later. Tried again for a day.
    """
    try:
        UUID(alert["id"])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"alert: must be an object with an id that is a UUID, not {shown(alert)}") from None
    receiver = Receiver.of(settings)
    if receiver is None:
        logger.warning("alert {} is not delivered: ALERT_WEBHOOK_URL is not set any more", alert["id"])
        return
    try:
        said = receiver.post(alert)
    except AlertRefused as e:
        logger.error("alert {} is refused: {}", alert["id"], e)
        raise
    except AlertNotDelivered as e:
        # Dramatiq says that it is tried again, and not why.
        logger.warning("alert {} is not delivered, and tried again later: {}", alert["id"], e)
        raise
    logger.info("alert {} is delivered: {}", alert["id"], said)


@actor(
    tenant_scoped=False, max_age=None, max_retries=0, time_limit=30_000, schedule=Schedule("* * * * *", missed="skip")
)
def send_heartbeat() -> None:
    """Ask for ``ALERT_HEARTBEAT_URL``, which tells somebody else that scheduler, Redis, worker and Postgres work.

    It is scheduled if that is set. Nothing that goes wrong is a failure: the heartbeat that is missing tells of it.
    """
    tick = scheduled_for()
    if settings.alert_heartbeat_url is None or (tick is not None and datetime.now(UTC) - tick > STALE):
        logger.debug("there is nobody to tell, or nothing to tell any more")
        return
    try:
        with operator_transaction() as session:
            session.execute(text("SELECT 1"))
        status = Receiver(settings.alert_heartbeat_url).get()
    except (AlertNotDelivered, SQLAlchemyError, TimeLimitExceeded) as e:
        logger.warning("no heartbeat is sent: {}", type(e).__name__)
    else:
        if status >= 300:
            logger.warning("the heartbeat's receiver answered {}", status)
