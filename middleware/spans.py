"""Spans of messages, after OpenTelemetry's conventions for messaging: one for each sending, one for each execution.

https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/

Imported only where there is something to trace to: it needs the extra ``otel``.
"""

from __future__ import annotations

from contextvars import Token
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Self

from dramatiq import Message, MessageProxy
from dramatiq.common import q_name
from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from middleware.redaction import Redactor
from middleware.tenant_context import correlation_of
from middleware.text import class_of, clean, message_of
from middleware.traceback_text import traceback_text

#: The options that carry a trace, as https://www.w3.org/TR/trace-context/ has them, and the characters looked at.
TRACEPARENT, TRACESTATE = "traceparent", "tracestate"
_CARRIED: Final = {TRACEPARENT: 256, TRACESTATE: 512}
#: Characters of an attribute, of an exception's message, and of its traceback.
_NAME_LIMIT, _MESSAGE_LIMIT, _TRACEBACK_LIMIT = 255, 2_000, 20_000

_W3C = TraceContextTextMapPropagator()


class _Begun(str):
    """A ``traceparent`` that has its span with it, until the message is sent.

    It goes where the message goes, which may be copied. Where it is refused, or Redis away, nobody tells us; then the
    span is forgotten with it.
    """

    span: Span | None

    def __new__(cls, traceparent: str, span: Span) -> Self:
        made = super().__new__(cls, traceparent)
        made.span = span
        return made

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        # Whoever pickles or copies the message has no use for it.
        return str, (str(self),)


@dataclass(frozen=True, slots=True)
class Executing:
    """An execution that has begun: its span, and what unbinds that from its thread."""

    span: Span
    token: Token[Context]


class Spans:
    """Makes them.

    Arguments:
      tracer: With which.
      redact: Takes secrets out of exceptions.
    """

    def __init__(self, tracer: Tracer, redact: Redactor) -> None:
        self.tracer = tracer
        self._redact = redact

    def sending(self, message: Message[Any]) -> None:
        """Begin the span of a message that is sent, within what this thread does, and let the message carry it."""
        queue = q_name(message.queue_name)
        span = self.tracer.start_span(f"send {queue}", kind=SpanKind.PRODUCER, attributes=_operation("send", queue))
        _carry(message.options, span)
        if TRACEPARENT in message.options:
            message.options[TRACEPARENT] = _Begun(message.options[TRACEPARENT], span)

    def sent(self, message: Message[Any]) -> None:
        """End the span of a message, whose other middleware has by now given it all that it carries."""
        begun = message.options.get(TRACEPARENT)
        if not isinstance(begun, _Begun) or begun.span is None:
            return
        span, begun.span = begun.span, None
        message.options[TRACEPARENT] = str(begun)
        if span.is_recording():
            span.set_attributes(_of_message(message))
        span.end()

    def processing(self, message: MessageProxy) -> Executing:
        """Begin the span of an execution, and bind it to this thread until :meth:`unbind`.

        Its parent is the sending, a retry's, too: the executions of a message stand side by side.
        """
        parent = self.parent_of(message)
        queue = q_name(str(message.queue_name))
        span = self.tracer.start_span(
            f"process {queue}",
            parent,
            kind=SpanKind.CONSUMER,
            attributes=_operation("process", queue),
        )
        if span.is_recording():
            span.set_attributes({**_of_message(message), "dramaturg.attempt": _attempt(message)})
        if not parent:
            # Its retries belong to the trace that begins here.
            _carry(message.options, span)
        return Executing(span, context.attach(trace.set_span_in_context(span, parent)))

    def parent_of(self, message: MessageProxy) -> Context:
        """Return the context that a message carries; an empty one where it carries none, or none that is whole."""
        carrier = {
            name: value
            for name, limit in _CARRIED.items()
            if isinstance(value := message.options.get(name), str) and len(value) <= limit
        }
        return _W3C.extract(carrier, Context()) if TRACEPARENT in carrier else Context()

    def processed(self, span: Span, outcome: str, error: BaseException | None) -> None:
        """End the span of an execution.

        Arguments:
          span: Which.
          outcome: ``succeeded``, ``retried``, ``failed`` or ``given_back``.
          error: What went wrong.
        """
        if span.is_recording():
            span.set_attribute("dramaturg.outcome", outcome)
            if error is not None:
                tell(span, error, self._redact)
        span.end()

    def bind(self, bound: Context) -> Token[Context]:
        """Let this thread work for a trace, until :meth:`unbind`."""
        return context.attach(bound)

    def unbind(self, token: Token[Context]) -> None:
        """Let this thread work for what it did before."""
        context.detach(token)


def tell(span: Span, error: BaseException, redact: Redactor) -> None:
    """Say in ``span`` what went wrong, redacted as a failed job's row is."""
    name, message = class_of(error), redact.text(message_of(error), _MESSAGE_LIMIT)
    event = {"exception.type": name, "exception.message": message}
    try:
        text = traceback_text(error)
    except BaseException as e:  # noqa: BLE001 - of a user's exception, which an ending must survive
        text = f"(the traceback could not be formatted: {type(e).__name__})"
    if text is not None:
        event["exception.stacktrace"] = redact.text_ends(text, _TRACEBACK_LIMIT)
    span.set_attribute("error.type", name)
    span.add_event("exception", event)
    span.set_status(Status(StatusCode.ERROR, f"{name}: {message}"))


def _carry(options: dict[str, Any], span: Span) -> None:
    options.pop(TRACESTATE, None)
    _W3C.inject(options, trace.set_span_in_context(span, Context()))


@lru_cache(maxsize=256)
def _operation(name: str, queue: str) -> dict[str, str]:
    return {
        "messaging.system": "dramatiq",
        "messaging.operation.name": name,
        "messaging.operation.type": name,
        "messaging.destination.name": _name(queue),
    }


def _of_message(message: Message[Any] | MessageProxy) -> dict[str, str | int]:
    options = message.options
    correlation_id = str(correlation_of(options, message.message_id))
    found: dict[str, str | int] = {
        "messaging.message.id": _name(message.message_id),
        "messaging.message.conversation_id": correlation_id,
        "dramaturg.actor": _name(message.actor_name),
        "dramaturg.correlation_id": correlation_id,
    }
    tenant_id = options.get("tenant_id")
    if tenant_id is not None:
        found["dramaturg.tenant_id"] = _name(tenant_id)
    return found


def _attempt(message: MessageProxy) -> int:
    retries = message.options.get("retries", 0)
    return min(max(retries, 0), 2**31) + 1 if isinstance(retries, int) else 1


def _name(value: object) -> str:
    # Whoever can write to Redis chooses it, and one that is no UTF-8 would cost all others that are exported with it.
    return clean(str(value)[:_NAME_LIMIT])
