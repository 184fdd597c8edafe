"""Queue ``attribution``: tenants' marketing attribution, recomputed window by window, and every day for all."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import NAMESPACE_URL, UUID, uuid4, uuid5

from loguru import logger

from db.current_message import current_execution
from db.errors import ConfigurationError
from db.session import operator_transaction, transaction
from db.tenancy import current_correlation_id, current_tenant, require_tenant
from worker.broker import settings
from worker.daily import runs
from worker.daily.arguments import day_before, parse_day, parse_models
from worker.daily.fan_out import fan_out, send_follower
from worker.daily.following import follow, follow_what_was_left, look_again, parse_run_id
from worker.daily.parts import note_success
from worker.recompute import parse_model, parse_model_version, parse_window, recompute
from worker.routing import actor
from worker.scheduler import Schedule, scheduled_for


# What is wrong with the input is as wrong at the fourth try.
@actor(throws=ValueError)
def recompute_window(
    window_start: str,
    window_end: str,
    model: str = "linear",
    model_version: str = "1.0.0",
    fail: bool = False,
) -> None:
    """Share the revenue of the tenant's conversions in a window among the touches that led to them.

    Running it again gives the same rows, with ``run_count`` one higher.

    Arguments:
      window_start, window_end: ISO 8601; a time without an offset is UTC. The window holds its start and not its end.
      model: One of :class:`worker.recompute.Model`.
      model_version: Tells results of different releases of a model apart; at most 50 characters.
      fail: Fail on purpose, to see what a failure looks like.

    Raises:
      ValueError: Naming the argument and its value. Not retried.
      db.errors.ConfigurationError: When the tables have another shape than ours.
    """
    if fail:
        raise ValueError("attribution recompute failure requested")
    window = parse_window(window_start, window_end)
    chosen, version = parse_model(model), parse_model_version(model_version)
    tenant_id = require_tenant()
    with transaction() as session:
        done = recompute(session, tenant_id, window, chosen, version)
        recovered = note_success(session, tenant_id)
    logger.info(
        "recomputed {} with {}: {} conversions, {} allocations, run {}",
        window,
        chosen.value,
        done.conversions,
        done.allocations,
        done.run_count,
    )
    if recovered is not None:
        logger.info("what had failed in run {} has succeeded", recovered)


# Once a night, late enough for events that come a little late.
@actor(
    tenant_scoped=False,
    throws=(ValueError, ConfigurationError),
    schedule=Schedule("10 2 * * *", missed="once"),
)
def recompute_day(day: str | None = None, models: list[str] | None = None) -> None:
    """Send a recompute of one day (UTC) for each tenant with events in it, and see to it that their end is summed up.

    A run, which is a row of ``attribution_runs``, has one ``recompute_window`` for each tenant and model. It goes on
    where it was left off when this message is executed again. Sent for a tenant, it recomputes that one's day alone.

    Arguments:
      day: ISO 8601; that before the one it was scheduled for, or before today, by default.
      models: Of :class:`worker.recompute.Model`; ``ATTRIBUTION_MODELS`` by default.

    Raises:
      ValueError: Naming the argument and its value, also for a day that is not over. Not retried; nothing was sent.
      db.errors.ConfigurationError: When the tables have another shape than ours. Not retried.
    """
    now = datetime.now(UTC)
    which = day_before(scheduled_for() or now) if day is None else parse_day(day, now)
    chosen = parse_models(settings.attribution_models or ("linear",) if models is None else models)
    run_id = _run_id()
    with operator_transaction() as session:
        runs.check(session)
        run = runs.begin(session, run_id, which, current_tenant(), current_correlation_id() or run_id)
    # First, so that somebody tells of a run of which nothing else came.
    send_follower(run, follow_run)
    expected = fan_out(run, chosen, recompute_window)
    logger.info("run {} of {}: {} recomputes are sent", run.id, run.day, expected)
    follow_what_was_left(recompute_window.actor_name)
    _forget_old_children()


# It looks until all have ended, and a look is no failure; max_age is no matter of the settings here.
@actor(tenant_scoped=False, retry_when=look_again, max_age=7 * 86_400_000)
def follow_run(run_id: str) -> None:
    """Finish a run when each of its recomputes has succeeded or is a failed job, a day after its begin at the latest.

    Its summary is in the log and in ``attribution_runs``; ``worker attribution runs`` shows it. Sent by
    :func:`recompute_day`.

    Arguments:
      run_id: Which.

    Raises:
      worker.daily.following.NotYet: When it is to be looked at again.
      ValueError: Naming the argument and its value.
      db.errors.ConfigurationError: When the tables have another shape than ours.
    """
    follow(parse_run_id(run_id), recompute_window.actor_name)


def _run_id() -> UUID:
    """Return the id of the run that the message at hand begins, in all its executions."""
    execution = current_execution()
    if execution is None:
        return uuid4()
    # Other producers' ids may be anything, lone surrogates included.
    known = execution.message_id.encode("utf-8", "backslashreplace").decode()
    return uuid5(NAMESPACE_URL, f"attribution run of {known}")


def _forget_old_children() -> None:
    while True:
        with operator_transaction() as session:
            if not runs.forget(session):
                return
