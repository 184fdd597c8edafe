"""Spans of SQL: one for each statement within a job's span, without its values.

OpenTelemetry's own instrumentation of SQLAlchemy would do, but for what it writes into a span of a statement that
failed: Postgres' words, which hold the values of a row that was refused.

Imported only where there is something to trace to: it needs the extra ``otel``.
"""

from __future__ import annotations

import re
import sys
from functools import lru_cache
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Tracer
from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine.interfaces import ExceptionContext

from middleware.redaction import Redactor
from middleware.spans import tell

#: Characters of a statement.
_TEXT_LIMIT: Final = 4_000
#: With which :mod:`db.session` begins a transaction: as many of them as of all others together, and they say nothing.
_BEGIN: Final = "BEGIN; SET LOCAL "
_SPAN: Final = "_dramaturg_span"
#: Values that were written into a statement, and what only looks as if it held one; first what comes first in it.
_PARTS = re.compile(
    # A name in quotes.
    r"""(?P<kept>"(?:[^"]|"")*(?:"|\Z))"""
    # Comments, in which anything may stand.
    r"|(?P<comment>--[^\n]*|/\*.*?(?:\*/|\Z))"
    # Strings; with all that follows, where it depends on the server's settings whether a quote ends one, or none does.
    r"|\b[eE]'(?:[^'\\]|''|\\.)*(?:'|\Z)|'(?:[^'\\]|''|\\(?!'))*'(?!')|'.*"
    r"|\$(?P<tag>\w*)\$.*?(?:\$(?P=tag)\$|\Z)"
    r"|(?<![\w$.:%])-?(?:0[xX][0-9a-fA-F]+|\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)\b",
    re.DOTALL,
)
_WORD = re.compile(r"\s*(?:--[^\n]*\n\s*|/\*.*?\*/\s*)*([A-Za-z]+)", re.DOTALL)


@lru_cache(maxsize=512)
def _told(statement: str) -> tuple[str, str]:
    """Return a statement's first word, and what may be shown of it."""
    word = _WORD.match(statement)
    return (word[1].upper() if word else "SQL"), shown(statement)


def shown(statement: str) -> str:
    """Return ``statement`` without the values that were written into it, and without comments."""
    return _PARTS.sub(lambda part: part["kept"] or ("" if part["comment"] else "?"), statement)


class SqlSpans:
    """Gives each statement that any engine of this process executes within a recorded span one of its own.

    Arguments:
      tracer: With which.
      redact: Takes secrets out of errors.
    """

    def __init__(self, tracer: Tracer, redact: Redactor) -> None:
        self._tracer = tracer
        self._redact = redact

    def listen(self) -> None:
        """Begin, unless the application has OpenTelemetry's own instrumentation of SQLAlchemy at work."""
        if "opentelemetry.instrumentation.sqlalchemy" not in sys.modules:
            for name, hook in self._hooks():
                event.listen(Engine, name, hook)

    def stop(self) -> None:
        """Make no more."""
        for name, hook in self._hooks():
            if event.contains(Engine, name, hook):
                event.remove(Engine, name, hook)

    def _hooks(self) -> list[tuple[str, Any]]:
        return [
            ("before_cursor_execute", self._begins),
            ("after_cursor_execute", self._ends),
            ("handle_error", self._fails),
        ]

    def _begins(
        self, connection: Connection, _cursor: Any, statement: str, _parameters: Any, execution: Any, _many: bool
    ) -> None:
        # What a process does by itself, such as looking whether there is anything to do, is nobody's trace.
        if not trace.get_current_span().is_recording() or statement.startswith(_BEGIN):
            return
        word, text = _told(statement[:_TEXT_LIMIT])
        url = connection.engine.url
        attributes: dict[str, str | int] = {
            "db.system.name": url.get_backend_name(),
            "db.namespace": url.database or "",
            "db.operation.name": word,
            "db.query.text": text,
        }
        if url.host:
            attributes["server.address"] = url.host
        if url.port:
            attributes["server.port"] = url.port
        span = self._tracer.start_span(f"{word} {url.database}", kind=SpanKind.CLIENT, attributes=attributes)
        execution.__dict__[_SPAN] = span

    def _ends(
        self, _connection: Connection, _cursor: Any, _statement: str, _parameters: Any, execution: Any, _many: bool
    ) -> None:
        span = _taken(execution)
        if span is not None:
            span.end()

    def _fails(self, error: ExceptionContext) -> None:
        span = _taken(error.execution_context)
        if span is not None:
            tell(span, error.original_exception, self._redact)
            span.end()


def _taken(execution: Any) -> Span | None:
    return None if execution is None else execution.__dict__.pop(_SPAN, None)
