"""Joins sender, job, child jobs and SQL in one trace, through OpenTelemetry and W3C ``traceparent`` among the options.

Without a ``TracerProvider``, the application's own or one that exports as the environment says, it does nothing, and
imports nothing of OpenTelemetry.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from contextvars import Token
from typing import TYPE_CHECKING, Any, Final

from dramatiq import Broker, Message, MessageProxy, Worker
from dramatiq.errors import Retry

from middleware.deliveries import Delivery
from middleware.dramatiq_internals import exception_of, is_consumer_thread, sent_by_somebody
from middleware.hooks import BeforeEnqueue
from middleware.redaction import Redactor
from middleware.tally import FAILED, RETRIED, SUCCEEDED, UNCOUNTED

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import TracerProvider

    from middleware.spans import Executing, Spans
    from middleware.sql_spans import SqlSpans

#: The name of who makes the spans.
INSTRUMENTATION: Final = "dramaturg"
#: Seconds for which a worker that stops waits for its last spans to be exported.
FLUSH_WITHIN: Final = 2.0


def current_trace_id() -> str | None:
    """Return the id of the trace that this thread or coroutine works for, as 32 hexadecimal characters, if any."""
    # Where nobody has imported it, nobody traces.
    api: Any = sys.modules.get("opentelemetry.trace")
    if api is None:
        return None
    found = api.get_current_span().get_span_context()
    return str(api.format_trace_id(found.trace_id)) if found.is_valid else None


def provider_of_application() -> TracerProvider | None:
    """Return the global ``TracerProvider``, if somebody has set one."""
    api: Any = sys.modules.get("opentelemetry.trace")
    if api is None:
        return None
    provider: TracerProvider = api.get_tracer_provider()
    return None if isinstance(provider, api.ProxyTracerProvider | api.NoOpTracerProvider) else provider


class _OfThread(threading.local):
    """What a thread executes, and the trace that it is bound to."""

    executing: Executing | None = None
    #: What unbinds the trace of a message that is being rejected.
    rejecting: Token[Context] | None = None


class Tracing(BeforeEnqueue):
    """Gives each message that is sent a span, and each execution. Before all middleware that sends, skips or fails.

    What follows from a job, a callback, the next of a pipeline, a child, is sent within its span. A retry, a delayed
    message's move and a replay keep the trace that their message began with; a message that carries none begins one.

    Arguments:
      redact: Takes secrets out of exceptions and SQL.
      export: Makes a ``TracerProvider`` that exports, where the environment asks for it and the application has none
        of its own. Called when a worker starts: after the process was forked.
    """

    def __init__(
        self, redact: Redactor | None = None, export: Callable[[], TracerProvider | None] = lambda: None
    ) -> None:
        self._redact = redact or Redactor()
        self._export = export
        self._provider: TracerProvider | None = None
        self._spans: Spans | None = None
        self._sql: SqlSpans | None = None
        self._local = _OfThread()

    def start(self, provider: TracerProvider | None = None) -> None:
        """Trace from now on, if there is anything to trace to. Once begun it goes on.

        Arguments:
          provider: What makes tracers; the application's by default, else what ``export`` makes.
        """
        if self._spans is None:
            provider = provider or provider_of_application() or self._export()
            if provider is not None:
                self._trace_to(provider)

    def _trace_to(self, provider: TracerProvider) -> Spans:
        # They import OpenTelemetry.
        from middleware.spans import Spans

        self._provider = provider
        self._spans = Spans(provider.get_tracer(INSTRUMENTATION), self._redact)
        return self._spans

    def flush(self) -> None:
        """Export what has ended, for at most :data:`FLUSH_WITHIN` seconds, whether the collector answers or not."""
        flush = getattr(self._provider, "force_flush", None)
        if flush is not None:
            flushing = threading.Thread(target=flush, name="spans", daemon=True)
            flushing.start()
            flushing.join(FLUSH_WITHIN)

    def before_worker_boot(self, broker: Broker, worker: Worker) -> None:
        self.start()
        if self._spans is not None:
            from middleware.sql_spans import SqlSpans

            self._sql = SqlSpans(self._spans.tracer, self._redact)
            self._sql.listen()

    def after_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        sql, self._sql = self._sql, None
        if sql is not None:
            sql.stop()
        self.flush()

    def before_enqueue_many(self, broker: Broker, messages: Sequence[Message[Any]], delay: int | None) -> None:
        spans = self._spans
        if spans is None:
            # A sender's own process sets its provider when it likes.
            provider = provider_of_application()
            if provider is None:
                return
            spans = self._trace_to(provider)
        for message in sent_by_somebody(messages):
            if message.options.get("traceparent") is None:
                spans.sending(message)

    def after_enqueue(self, broker: Broker, message: Message[Any], delay: int | None) -> None:
        if self._spans is not None:
            self._spans.sent(message)

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        spans = self._spans
        if spans is None:
            return
        # What this thread executed before, where its end was interrupted.
        self._leave(spans)
        if UNCOUNTED not in message.options:
            self._local.executing = spans.processing(message)

    def after_process_message(
        self,
        broker: Broker,
        message: MessageProxy,
        *,
        result: Any = None,
        exception: BaseException | None = None,
    ) -> None:
        self._end(message, exception)

    def after_skip_message(self, broker: Broker, message: MessageProxy) -> None:
        self._end(message, sys.exception())

    def _end(self, message: MessageProxy, exception: BaseException | None) -> None:
        spans = self._spans
        executing = None if spans is None else self._leave(spans)
        if spans is None or executing is None:
            return
        if isinstance(message, Delivery) and (message.give_back or message.lost):
            outcome, error = "given_back", None
        elif message.failed:
            outcome, error = FAILED, exception_of(message) or exception
        elif exception is not None:
            # Whoever raises Retry wants just that.
            outcome, error = RETRIED, None if isinstance(exception, Retry) else exception
        else:
            outcome, error = SUCCEEDED, None
        spans.processed(executing.span, outcome, error)

    def _leave(self, spans: Spans) -> Executing | None:
        """Let this thread work for no trace, and return what it executed."""
        local = self._local
        executing, rejecting = local.executing, local.rejecting
        local.executing = local.rejecting = None
        if rejecting is not None:
            spans.unbind(rejecting)
        if executing is not None:
            spans.unbind(executing.token)
        return executing

    def before_nack(self, broker: Broker, message: MessageProxy) -> None:
        """Bind the trace again, for what is logged, and told to others, of a failure."""
        spans = self._spans
        if spans is None:
            return
        self._leave(spans)
        # One that has run carries a trace, if only its own.
        self._local.rejecting = spans.bind(spans.parent_of(message))

    #: See :class:`middleware.failure_endings.FailureEndings`.
    tidies_after_nack = True

    def after_nack(self, broker: Broker, message: MessageProxy) -> None:
        spans = self._spans
        if spans is None:
            return
        self._leave(spans)
        if is_consumer_thread():
            # It did not run: its actor is unknown, it is no message, or it has cost too many workers.
            executing = spans.processing(message)
            spans.unbind(executing.token)
            spans.processed(executing.span, FAILED, exception_of(message))
