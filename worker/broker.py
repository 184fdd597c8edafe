"""The process-wide broker, made from the environment when this module is first imported.

Importing it makes it Dramatiq's global broker, declares the queues, and configures ``db.session``; it connects to
nothing.
"""

from __future__ import annotations

from worker import kept  # isort: skip - before all that the keeper need not hold

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import dramatiq
from dramatiq import Broker, Middleware
from dramatiq.middleware import CurrentMessage
from dramatiq.rate_limits import RateLimiterBackend
from loguru import logger

from db import configuration
from db.errors import ConfigurationError
from db.failure_writer import WRITE_WITHIN, FailureWriter
from db.failures import Ending, Failure
from db.loaded import load
from middleware.age_limit import AgeLimit
from middleware.classification import Classifier
from middleware.close_sessions import CloseSessions
from middleware.crash_guard import CrashGuard
from middleware.dead_letters import DeadLetters
from middleware.dramatiq_internals import check_version
from middleware.errors import LeaseUnsure
from middleware.event_loop import AsyncIO
from middleware.failed_skips import FailedSkips
from middleware.failure_endings import FailureEndings
from middleware.graceful_shutdown import GracefulShutdown
from middleware.job_metrics import JobMetrics
from middleware.known_queues import KnownQueues
from middleware.log_context import LogContext
from middleware.lossless_broker import BEAT, LosslessBroker
from middleware.lua_scripts import Scripts
from middleware.metrics import Metrics
from middleware.option_checks import OptionChecks
from middleware.outbox import Outbox
from middleware.process_facts import process_name
from middleware.redaction import Redactor
from middleware.relay_outbox import RelayOutbox
from middleware.replays import ReplayOutcomes
from middleware.safe_follow_ups import SafeCallbacks, SafePipelines
from middleware.safe_groups import GroupCounts, SafeGroupCallbacks
from middleware.safe_retries import SafeRetries
from middleware.sentry import Sentry
from middleware.span_export import start as start_export
from middleware.spool_drainer import SpoolDrainer
from middleware.statement_deadline import StatementDeadline
from middleware.supervision import Supervision
from middleware.tenant_context import TenantContext
from middleware.time_limit import TimeLimit
from middleware.tracing import Tracing
from middleware.unique import UniqueJobs
from worker import probe
from worker.consumed_queues import ConsumedQueues
from worker.explain.at_start import MissingKey
from worker.logs.setup import Logs, configure_worker
from worker.queues import Queue
from worker.redis_client import make_redis
from worker.replay.replayer import Replayer
from worker.scheduler.declared import Schedules
from worker.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from middleware.memory_broker import MemoryBroker
    from middleware.relay import Relay
    from worker.replay.runner import Runner

#: Gives failures their ``error_type``; an application adds its own with :meth:`Classifier.add`.
classifier = Classifier()


def declared_queues(settings: Settings) -> set[str]:
    """Return the names of the four queues and of the application's own."""
    return {*(queue.value for queue in Queue), *settings.extra_queues}


def make_middleware(
    settings: Settings,
    record: Callable[[Any], object],
    queues: set[str],
    record_all: Callable[[Sequence[Ending]], object] | None = None,
    group_counts: RateLimiterBackend | None = None,
    endings: FailureEndings | None = None,
) -> list[Middleware]:
    """Return the middleware in the order that keeps the promises; ``tests/unit/test_middleware_order.py`` says why.

    Arguments:
      settings: Say how it is tuned.
      record: Where dead messages are written, and what the success of replays closes.
      queues: The names of the queues.
      record_all: Writes what waited in the spool; one by one with ``record`` by default.
      endings: Ends messages once their failures are recorded.
      group_counts: Where the children of groups are counted; in memory by default, which is for the StubBroker.
    """
    if group_counts is None:
        from dramatiq.rate_limits.backends import StubBackend

        group_counts = StubBackend()
    redactor = Redactor(settings.redact_keys)
    sentry = None if settings.sentry_dsn is None else Sentry(settings.sentry_dsn, redactor, settings.worker_name)
    return [
        LogContext(),
        Logs(settings),
        Tracing(redactor, lambda: start_export(redactor, process_name(settings.worker_name))),
        *([] if sentry is None else [sentry]),
        KnownQueues(queues),
        ConsumedQueues(_queues_of),
        MissingKey(has_key=settings.llm_api_key is not None),
        OptionChecks(),
        Schedules(),
        Metrics(but=[probe.ACTOR]),
        TenantContext(),
        UniqueJobs(),
        DeadLetters(
            record,
            classify=classifier,
            redact=redactor,
            seal=None if settings.keys is None else settings.keys.seal,
            worker_name=settings.worker_name,
            announce=None if sentry is None else sentry.announce,
            endings=endings,
        ),
        ReplayOutcomes(record, worker_name=settings.worker_name),
        CrashGuard(_is_recorded if record_all else lambda _: False),
        FailedSkips(),
        AgeLimit(max_age=settings.max_age),
        SafeGroupCallbacks(group_counts),
        SafeCallbacks(),
        SafePipelines(),
        SafeRetries(
            redact=redactor,
            worker_name=settings.worker_name,
            max_retries=settings.max_retries,
            min_backoff=settings.min_backoff,
            max_backoff=settings.max_backoff,
        ),
        CurrentMessage(),
        AsyncIO(),
        CloseSessions(),
        Replayer(_operators, lambda broker, name, wait: _make_runner(settings, broker, name, wait)),
        RelayOutbox(),
        *([] if endings is None else [endings]),
        SpoolDrainer(record_all or (lambda failures: [record(failure) for failure in failures])),
        StatementDeadline(time_limit=settings.time_limit),
        Supervision(time_limit=settings.time_limit, overtime=settings.overtime),
        GracefulShutdown(stop_within=settings.stop_within),
        TimeLimit(time_limit=settings.time_limit),
    ]


def make_broker(
    settings: Settings,
    record: Callable[[Failure], object] | None = None,
    queues: set[str] | None = None,
) -> Broker:
    """Return a broker for ``settings`` with every queue declared; connects to nothing.

    Arguments:
      settings: Says which broker, and how its middleware is tuned.
      record: Where dead messages are written; by default to their table, several at a time.
      queues: The names of the queues; :func:`declared_queues` by default.

    Raises:
      ConfigurationError: When the installed Dramatiq is not one that this works with.
    """
    check_version()
    queues = declared_queues(settings) if queues is None else queues
    record_all: Callable[[Sequence[Ending]], object] | None = None
    endings: FailureEndings | None = None
    if record is None:
        record_all = _end_all
        writer = FailureWriter(lambda endings: _end_ours(broker, endings), prepare=lambda: load("db.failed_jobs"))
        record, endings = writer.record, FailureEndings(writer)
    broker: LosslessBroker | MemoryBroker
    if settings.stub:
        from middleware.memory_broker import MemoryBroker

        broker = MemoryBroker(middleware=make_middleware(settings, record, queues))
        broker.takes_all = settings.outbox
    else:
        client, namespace = make_redis(settings), settings.redis_namespace
        broker = LosslessBroker(
            client=client,
            waiting_client=make_redis(settings, waits=True),
            # A lost answer, and the next try, must fit into a lease.
            lease_client=make_redis(settings, answers_within=BEAT),
            middleware=make_middleware(
                settings, record, queues, record_all, GroupCounts(Scripts(client, namespace)), endings
            ),
            namespace=namespace,
            spool_limit=settings.spool_limit,
            max_starts=settings.max_starts,
            worker_name=settings.worker_name,
            fair=settings.fair,
            keeper=settings.keeper,
            metrics=JobMetrics(classifier) if settings.metrics else None,
            outbox=_make_outbox(settings, Scripts(client, namespace), queues),
        )
    for queue in sorted(queues):
        broker.declare_queue(queue)
    probe.declare(broker, min(queues))
    return broker


def _make_outbox(settings: Settings, run: Scripts, queues: set[str]) -> Outbox:
    keys = settings.keys

    def make() -> Relay:
        from middleware.relay import Relay

        return Relay(
            run,
            keys=keys,
            knows=lambda queue: queue in queues,
            record=_end_all,
            worker_name=settings.worker_name,
        )

    return Outbox(make, keys=keys, takes_all=settings.outbox)


# What imports SQLAlchemy is imported when it is first needed: a worker is at its first job three times as soon.


def _end_all(endings: Sequence[Ending], check: Callable[[], object] = lambda: None) -> None:
    load("db.failed_jobs").end_all(endings, check)


def _operators() -> AbstractContextManager[Session]:
    from db.session import operator_transaction

    return operator_transaction()


def _is_recorded(delivery_id: str) -> bool:
    return bool(load("db.failed_jobs").is_recorded(delivery_id))


def _make_runner(settings: Settings, broker: LosslessBroker, name: str, wait: Callable[[float], bool]) -> Runner:
    from worker.replay.making import make_runner

    return make_runner(settings, broker, broker.client, name, wait, knows_all=False)


def _end_ours(broker: Broker, endings: Sequence[Ending]) -> None:
    ids = [ending.delivery_id for ending in endings]

    def before_commit() -> None:
        # A process that was frozen meanwhile may have lost its messages to another.
        if isinstance(broker, LosslessBroker) and not broker.surely_holds(ids):
            raise LeaseUnsure("this process may have been given up, so what it holds may be another's")

    if isinstance(broker, LosslessBroker):
        # Before there is a row. Not with the locks that writing it takes: Redis may be long in answering a connection.
        broker.tell_ran(ids)
    _end_all(endings, before_commit)


def _queues_of(modules: Iterable[str]) -> set[str] | None:
    # Routing declares actors on this module's broker, so it can only be asked later.
    from worker.routing import queues_of

    return queues_of(modules)


def _configure_session(settings: Settings) -> None:
    if settings.database_url is not None:
        configuration.configure(
            settings.database_url,
            operator_database_url=settings.operator_database_url,
            pool_size=settings.db_pool_size,
            max_overflow=settings.db_max_overflow,
            # A failure's row waits for a connection, too, and should not for longer than it may take to write.
            pool_timeout=WRITE_WITHIN,
            lock_timeout_ms=settings.db_lock_timeout,
        )


def _log_only(failure: Failure) -> None:
    """Stand in for the table where tests on the StubBroker have no database."""
    logger.warning(
        "message {} for actor {} is dead, and without DATABASE_URL recorded nowhere: {}: {}",
        failure.task_id,
        failure.task_name,
        failure.exception_class,
        failure.error_message,
    )


try:
    settings = Settings.load()
    # In worker processes alone, and before anything has something to say.
    configure_worker(settings)
    if settings.database_url is None and not settings.stub:
        raise ConfigurationError("DATABASE_URL: required (postgres://user:password@host:port/name)")
    _configure_session(settings)
    #: The queues that may be used in this process; :func:`worker.routing.register` adds to them.
    queues = declared_queues(settings)
    broker = make_broker(settings, None if settings.database_url else _log_only, queues)
    dramatiq.set_broker(broker)
except BaseException:
    kept.give_up()
    raise
kept.look_for_garbage()
