"""Makes Sentry's events of failures, and hands them to the SDK's sending thread.

Imported only where ``SENTRY_DSN`` is set: it needs the extra ``sentry``.
"""

from __future__ import annotations

import logging
import threading
import time
from functools import lru_cache
from typing import Any, Final

import sentry_sdk
from loguru import logger
from sentry_sdk.transport import HttpTransport
from sentry_sdk.utils import event_from_exception

from db.failed_jobs import failed_job_id
from db.failures import Failure
from middleware.redaction import Redactor
from middleware.tracing import current_trace_id

#: Characters kept of each exception's message, and frames at either end of its stack.
_MESSAGE_LIMIT, _FRAMES = 4_000, 25
#: Exceptions kept of a chain or a group: an event of more than a megabyte is refused.
EXCEPTIONS: Final = 20
#: Seconds between two lines of the log about events that were dropped.
_SAY_EVERY: Final = 60.0
#: What the SDK calls its sending thread.
_THREAD: Final = "sentry-sdk.BackgroundWorker"
#: Source lines around a frame's.
_AROUND: Final = ("pre_context", "post_context")


class _Transport(HttpTransport):
    """Sentry's, which says once in a while that events are dropped; the SDK says nothing."""

    _said = float("-inf")
    _more = 0
    _counting = threading.Lock()

    def on_dropped_event(self, _reason: str) -> None:
        with self._counting:
            now = time.monotonic()
            if now - self._said < _SAY_EVERY:
                self._more += 1
                return
            more, self._said, self._more = self._more, now, 0
        logger.warning("an event for Sentry was dropped ({}); {} before it", _reason, more)


def _of_others(record: logging.LogRecord) -> bool:
    """Tell whether a line of urllib3 is not about a try to send an event, each of which has three."""
    return record.threadName != _THREAD


class SentryClient:
    """One client of the SDK, and what an event says.

    Arguments:
      dsn: Where events go.
      redact: Takes secrets out.
      worker_name: What Sentry is to call this process' host.

    Raises:
      sentry_sdk.utils.BadDsn: When ``dsn`` is none.
    """

    def __init__(self, dsn: str, redact: Redactor, worker_name: str | None) -> None:
        self._redact = redact
        logging.getLogger("urllib3.connectionpool").addFilter(_of_others)
        # Release and environment come from SENTRY_RELEASE and SENTRY_ENVIRONMENT, as always.
        self._client = sentry_sdk.Client(
            dsn=dsn,
            transport=_Transport,
            server_name=worker_name,
            default_integrations=False,
            auto_enabling_integrations=False,
            include_local_variables=False,
            max_breadcrumbs=0,
            auto_session_tracking=False,
            enable_backpressure_handling=False,
        )
        # It would be cut in the midst of it.
        self._lines = lru_cache(maxsize=256)(redact.text)

    def send(self, event: Any) -> None:
        """Hand an event to the sending thread, which drops it if it has too many already."""
        self._client.capture_event(event)

    def flush(self, within: float) -> None:
        """Wait until what was handed over is sent, for at most so many seconds."""
        # Not in the caller's thread: looking up a host's name has no limit.
        flushing = threading.Thread(target=self._client.flush, args=(within,), name="sentry", daemon=True)
        flushing.start()
        flushing.join(within)

    def event(self, failure: Failure, error: BaseException | None) -> Any:
        """Return the event of a failure."""
        event: dict[str, Any] = {"level": "error"}
        if error is not None and error.__traceback__ is not None:
            found, _ = event_from_exception(error, client_options=self._client.options)
            event = dict(found)
            # The one that was raised is last, before it its cause or its parts.
            values = event["exception"]["values"] = event["exception"]["values"][-EXCEPTIONS:]
            for one in values:
                self._clean(one)
        else:
            event["message"] = f"{failure.exception_class}: {failure.error_message}"[:_MESSAGE_LIMIT]
        event["timestamp"] = failure.failed_at
        event["transaction"] = failure.task_name
        event["tags"] = _tags(failure)
        if failure.fingerprint is not None:
            # So Sentry's issues are the groups of `worker failed groups`.
            event["fingerprint"] = [failure.fingerprint]
        event["contexts"] = {
            "job": {
                "args": failure.task_args,
                "kwargs": failure.task_kwargs,
                "retries": failure.retry_count,
                "worker": failure.worker,
                "place": failure.place,
                "trace_id": current_trace_id(),
            }
        }
        return event

    def _clean(self, exception: dict[str, Any]) -> None:
        """Redact one exception of a chain, and keep both ends of its stack."""
        exception["value"] = self._redact.text(str(exception.get("value") or ""), _MESSAGE_LIMIT)
        stack = exception.get("stacktrace")
        if not stack:
            return
        frames = stack["frames"]
        if len(frames) > 2 * _FRAMES:
            frames = stack["frames"] = [*frames[:_FRAMES], *frames[-_FRAMES:]]
        for frame in frames:
            frame.pop("vars", None)
            if frame.get("context_line"):
                frame["context_line"] = self._lines(frame["context_line"])
            for name in _AROUND:
                if frame.get(name):
                    frame[name] = self._lines("\n".join(frame[name])).split("\n")


def _tags(failure: Failure) -> dict[str, str]:
    row = failure.replayed_row or failed_job_id(failure.task_id, failure.task_name)
    found = {
        "tenant_id": failure.tenant_id,
        "queue": failure.queue,
        "actor": failure.task_name,
        "error_type": failure.error_type,
        "message_id": failure.task_id,
        "correlation_id": failure.correlation_id,
        "failed_job_id": row,
    }
    return {name: str(value) for name, value in found.items() if value is not None}
