"""Exports spans as OpenTelemetry's own environment variables say, and is quiet about it.

https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/

OpenTelemetry is imported only where an endpoint is named; it needs the extra ``otel``.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from loguru import logger

from middleware.redaction import Redactor

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

#: What a trace is attributed to where ``OTEL_SERVICE_NAME`` does not say.
SERVICE: Final = "dramaturg"
#: Seconds between two lines of the log about what goes wrong with exporting.
SAY_EVERY: Final = 60.0
PROTOCOL: Final = "http/protobuf"
_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


def endpoint(environ: Mapping[str, str]) -> str | None:
    """Return where the environment says that spans go, if it does."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    if environ.get("OTEL_TRACES_EXPORTER", "").strip().lower() == "none":
        return None
    return next((value for name in _ENDPOINTS if (value := environ.get(name, "").strip())), None)


def problem(environ: Mapping[str, str]) -> tuple[str, str] | None:
    """Return why spans cannot go where the environment says, and what to do about it; None where they can, or need
    not."""
    where = endpoint(environ)
    if where is None:
        return None
    parts = urlsplit(where)
    if parts.scheme not in {"http", "https"} or not parts.netloc:
        name = next(name for name in _ENDPOINTS if environ.get(name, "").strip())
        return f"{name} is no URL", "Set it to http://host:4318, or https://."
    protocol = next(((name, said) for name in _PROTOCOLS if (said := environ.get(name, "").strip())), None)
    if protocol is not None and protocol[1] != PROTOCOL:
        return f"{protocol[0]} is not {PROTOCOL}", f"Leave it out, and name the collector's port for {PROTOCOL}, 4318."
    if not is_installed():
        return "OpenTelemetry's SDK and exporter are not installed", "pip install 'dramaturg[otel]'"
    return None


def is_installed() -> bool:
    """Tell whether the extra ``otel`` is installed."""
    try:
        return all(find_spec(f"opentelemetry.{name}") for name in ("sdk.trace", "exporter.otlp.proto.http"))
    except ModuleNotFoundError:
        return False


def start(redact: Redactor, instance: str, environ: Mapping[str, str] | None = None) -> TracerProvider | None:
    """Make a ``TracerProvider`` that exports in a thread of its own, and make it the global one.

    None where the environment names no endpoint. Where it does and there cannot be one, the log says why, and there is
    none either.

    Arguments:
      redact: Takes secrets out of what is logged.
      instance: What failure rows call this process.
      environ: The process's by default, from which the SDK reads the rest.
    """
    environ = os.environ if environ is None else environ
    if endpoint(environ) is None:
        return None
    why_not = problem(environ)
    if why_not is not None:
        logger.warning("nothing is traced: {}. {}", *why_not)
        return None
    try:
        return _start(redact, instance)
    except Exception as e:  # noqa: BLE001 - a variable that the SDK cannot read; its text may hold a header's value
        logger.error("nothing is traced, because OpenTelemetry's SDK does not start: {}", type(e).__name__)
        return None


def _start(redact: Redactor, instance: str) -> TracerProvider:
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider as Provider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    _quieten(redact)
    resource = Resource.create()
    mine = {SERVICE_INSTANCE_ID: instance} if SERVICE_INSTANCE_ID not in resource.attributes else {}
    if str(resource.attributes.get(SERVICE_NAME, "unknown_service")).startswith("unknown_service"):
        mine[SERVICE_NAME] = SERVICE
    # Not at the interpreter's exit, where it would wait for half a minute.
    provider = Provider(resource=resource.merge(Resource(mine)), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    return provider


def _quieten(redact: Redactor) -> None:
    """Let the SDK's lines go through :class:`Quiet`, in this process."""
    log = logging.getLogger("opentelemetry")
    if not any(isinstance(handler, Quiet) for handler in log.handlers):
        log.addHandler(Quiet(redact))
        log.propagate = False


class Quiet(logging.Handler):
    """Says once in a while what the SDK says at each batch while its collector is away.

    Arguments:
      redact: Takes secrets out.
    """

    def __init__(self, redact: Redactor) -> None:
        super().__init__(logging.WARNING)
        self._redact = redact
        self._said = float("-inf")
        self._more = 0
        self._counting = threading.Lock()

    def emit(self, record: logging.LogRecord) -> None:
        with self._counting:
            now = time.monotonic()
            if now - self._said < SAY_EVERY:
                self._more += 1
                return
            more, self._said, self._more = self._more, now, 0
        # This one would repeat a header, which is where the collector's key is.
        of_headers = record.name == "opentelemetry.util.re"
        text = "a header of OTEL_EXPORTER_OTLP_HEADERS is not name=value" if of_headers else record.getMessage()
        logger.warning("OpenTelemetry: {} ({} lines before it left out)", self._redact.text(text, 500), more)
