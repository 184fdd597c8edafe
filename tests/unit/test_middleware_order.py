"""The relative order of DESIGN.md. Before hooks run in it, after hooks in reverse."""

from __future__ import annotations

from dramatiq.middleware import CurrentMessage

from middleware.age_limit import AgeLimit
from middleware.close_sessions import CloseSessions
from middleware.crash_guard import CrashGuard
from middleware.dead_letters import DeadLetters
from middleware.event_loop import AsyncIO
from middleware.failed_skips import FailedSkips
from middleware.graceful_shutdown import GracefulShutdown
from middleware.log_context import LogContext
from middleware.replays import ReplayOutcomes
from middleware.safe_follow_ups import SafeCallbacks, SafePipelines
from middleware.safe_groups import SafeGroupCallbacks
from middleware.safe_retries import SafeRetries
from middleware.spool_drainer import SpoolDrainer
from middleware.statement_deadline import StatementDeadline
from middleware.supervision import Supervision
from middleware.tenant_context import TenantContext
from middleware.time_limit import TimeLimit
from middleware.tracing import Tracing
from worker.broker import broker
from worker.logs.setup import Logs
from worker.replay.replayer import Replayer

ORDER = [
    LogContext,  # before all: it surrounds what others put around a thread's work
    Logs,
    Tracing,  # around whatever sends, skips or fails: the last to see how a message ended
    TenantContext,  # all others work inside the binding, also in after hooks
    DeadLetters,  # sees what a retry changes only after it has noted how things were
    ReplayOutcomes,  # closes what has succeeded, as DeadLetters records what has failed: inside the tenant's binding
    CrashGuard,  # what is not run has not started
    FailedSkips,
    AgeLimit,
    SafeGroupCallbacks,  # counts a child only after all that may still fail it
    SafeCallbacks,
    SafePipelines,
    SafeRetries,  # after it, in reverse, come the follow-ups, so that they see whether the message failed
    CurrentMessage,
    AsyncIO,
    CloseSessions,  # while the event loop still runs
    Replayer,  # as the drainer
    SpoolDrainer,  # before the connections are closed, in reverse
    StatementDeadline,  # gone before a failure is written
    Supervision,  # of jobs, not of what ends them
    GracefulShutdown,  # Dramatiq's ShutdownNotifications; interrupts no hook but TimeLimit's
    TimeLimit,  # last: disarmed before any other after hook, which it could otherwise interrupt
]


def test_relative_order() -> None:
    kinds = [type(m) for m in broker.middleware]
    places = [kinds.index(kind) for kind in ORDER]
    assert places == sorted(places)
    assert kinds[0] is LogContext
    assert kinds[-1] is TimeLimit


def test_each_is_there_once() -> None:
    kinds = [type(m) for m in broker.middleware]
    assert len(kinds) == len(set(kinds))
