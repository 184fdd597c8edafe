"""Queue ``maintenance``: checks on what other jobs have written, and what keeps a deployment tidy by itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

import dramatiq
from loguru import logger

from db.alone import alone
from db.deadline import remaining_ms
from db.failed.batches import AT_ONCE
from db.failed.expiry import Expired, expire
from db.once_expiry import expire_once
from db.session import operator_transaction, transaction
from db.tenancy import require_tenant
from middleware.lossless_broker import LosslessBroker
from worker import adoption
from worker.arguments import shown
from worker.broker import queues, settings
from worker.recompute import parse_model, parse_model_version, parse_window
from worker.routing import actor
from worker.text import counted
from worker.windows import unbalanced_conversions

#: Rows, or messages, of a batch at most.
BATCH_AT_MOST: Final = 10_000
#: Seconds that one job works at most, however long it may run, and milliseconds until the next goes on.
WORK_FOR: Final = 300.0
GO_ON_AFTER: Final = 10_000


class UnbalancedAllocations(Exception):
    """Raised when a conversion's allocations do not add up to its revenue."""


class NothingRemoved(Exception):
    """Raised when all the time that retention had was not enough to remove anything: the next would do no more."""


@actor(throws=(ValueError, UnbalancedAllocations))
def verify_window(window_start: str, window_end: str, model: str = "linear", model_version: str = "1.0.0") -> None:
    """Check that the allocations of a recomputed window still add up, cent by cent, to the tenant's conversions.

    They stop doing so when events arrive late: the failure row says that the window wants recomputing.

    Arguments:
      window_start, window_end, model, model_version: As :func:`worker.attribution.recompute_window` was given them.

    Raises:
      ValueError: Naming the argument and its value; also when the window was never recomputed.
      UnbalancedAllocations: Naming the first conversions that do not add up.
    """
    window = parse_window(window_start, window_end)
    chosen, version = parse_model(model), parse_model_version(model_version)
    tenant_id = require_tenant()
    with transaction() as session:
        wrong = unbalanced_conversions(session, tenant_id, window, chosen, version)
    if wrong:
        raise UnbalancedAllocations(
            f"recompute {window} with {chosen.value}: "
            + "; ".join(
                f"{w.conversion_id}: {w.revenue_cents} cents earned, {w.allocated_cents} allocated" for w in wrong
            )
        )
    logger.info("{} adds up", window)


@actor(tenant_scoped=False, throws=(ValueError, NothingRemoved), schedule="17 2 * * *")
def apply_retention(batch: int = AT_ONCE) -> None:
    """Remove what has been kept for as long as the rules say, for all tenants, in short transactions.

    That is failed jobs, their payloads, history and ended replays, answers of a language model, and what ``once()``
    remembers. At half its time it sends itself again for the rest. Where another process is at it, it ends at once.

    Arguments:
      batch: Rows in one transaction, at most.

    Raises:
      ValueError: Naming ``batch`` and its value. Not retried.
      NothingRemoved: When its time was over before anything was removed. Not retried.
      sqlalchemy.exc.SQLAlchemyError: When Postgres is away. Tried again, for what is left.
    """
    batch = _count("batch", batch)
    should_stop = _half_time()
    with alone(apply_retention.actor_name) as first:
        if not first:
            logger.info("another process applies the rules of retention; there is nothing to do here")
            return
        now = datetime.now(UTC)
        done = expire(
            operator_transaction, now=now, by=apply_retention.actor_name, batch=batch, should_stop=should_stop
        )
        forgotten, stopped = expire_once(
            operator_transaction,
            now=now,
            message_days=settings.once_keep_days,
            key_days=settings.once_keys_keep_days,
            batch=batch,
            should_stop=should_stop,
        )
    logger.info("retention removed {}, and {} of what happened once", _said(done), f"{forgotten:,}")
    # After the block, or the next might find this one still at it.
    if done.stopped or stopped:
        if not done.total + forgotten:
            # It would send itself for ever.
            raise NothingRemoved(
                f"half of the time was over before a batch of {batch:,} was removed"
                + (f", and somebody else holds {counted(done.held, 'job')}" if done.held else "")
                + ": smaller batches (batch=...) or a longer time limit may help"
            )
        logger.info("there is more, which the next goes on with")
        apply_retention.send_with_options(kwargs={"batch": batch}, delay=GO_ON_AFTER)


@actor(tenant_scoped=False, throws=ValueError, schedule="47 1 * * *")
def adopt_dead_letters(batch: int = adoption.AT_ONCE) -> None:
    """Take what stock Dramatiq keeps of its dead messages into ``worker_failed_jobs``; see :mod:`worker.adoption`.

    Those of declared queues: others may be another application's, and the log says what is left of them. At half its
    time it sends itself again for the rest. Where another process is at it, it ends at once.

    Arguments:
      batch: Messages in one transaction, at most.

    Raises:
      ValueError: Naming ``batch`` and its value. Not retried.
      ConnectionClosed: When Redis is away. Tried again, as for the next.
      sqlalchemy.exc.SQLAlchemyError: When Postgres is away.
      worker.adoption.NotAdopted: When it will not take some of them; the others are taken.
    """
    batch = _count("batch", batch)
    broker = dramatiq.get_broker()
    if not isinstance(broker, LosslessBroker):
        logger.info("there is no Redis here that could hold dead messages")
        return
    with alone(adoption.ALONE) as first:
        if not first:
            logger.info("another process adopts dead messages; there is nothing to do here")
            return
        done = adoption.adopt(
            broker, broker.client, queues, namespace=broker.namespace, batch=batch, should_stop=_half_time()
        )
        others = adoption.told_of_others(adoption.count_dead(broker.client, queues, namespace=broker.namespace), queues)
    logger.info("adopted {} of stock Dramatiq's", counted(done.queues.total(), "dead message"))
    if others is not None:
        logger.warning("{}", others)
    # The next would find what is left again, and no more of the others, if all the time went to it.
    if done.stopped and (done.queues.total() or done.problem is None):
        adopt_dead_letters.send_with_options(kwargs={"batch": batch}, delay=GO_ON_AFTER)
    elif done.problem is not None:
        raise adoption.NotAdopted(f"{counted(done.left, 'dead message')} could not be recorded: {done.problem}")


def _count(argument: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= BATCH_AT_MOST:
        raise ValueError(f"{argument}: must be a whole number from 1 to {BATCH_AT_MOST}, not {shown(value)}")
    return value


def _half_time() -> Callable[[], bool]:
    """Return what tells whether half of the job's time is over: a batch more, and its end, fit into the rest."""
    left = remaining_ms()
    end = time.monotonic() + (WORK_FOR if left is None else min(WORK_FOR, left / 2_000))
    return lambda: time.monotonic() >= end


def _said(done: Expired) -> str:
    return ", ".join(
        [
            counted(done.rows.total(), "job"),
            counted(done.payloads, "payload"),
            counted(done.events, "event"),
            counted(done.answers, "answer"),
            counted(done.replays, "replay"),
            counted(done.groups, "group"),
        ]
    )
