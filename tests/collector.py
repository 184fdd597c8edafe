"""A small local server that takes what OpenTelemetry exports and what Sentry's SDK sends."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Exported:
    """A span as it arrived."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: int
    attributes: dict[str, Any]
    #: Of the process.
    resource: dict[str, Any]


@dataclass
class Collector:
    """The server, and what has arrived.

    Attributes:
      url: For ``OTEL_EXPORTER_OTLP_ENDPOINT``.
      dsn: For ``SENTRY_DSN``.
      bodies: All of it, as bytes, unpacked.
    """

    url: str
    spans: list[Exported] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)

    @property
    def dsn(self) -> str:
        return self.url.replace("http://", "http://key@") + "/1"

    def take(self, path: str, body: bytes) -> None:
        self.bodies.append(body)
        if path == "/v1/traces":
            self.spans += _spans(body)
        elif path == "/api/1/envelope/":
            self.events += _events(body)


def _spans(body: bytes) -> Iterator[Exported]:
    for of_resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        resource = _values(of_resource.resource.attributes)
        for scope in of_resource.scope_spans:
            for span in scope.spans:
                yield Exported(
                    name=span.name,
                    trace_id=span.trace_id.hex(),
                    span_id=span.span_id.hex(),
                    parent_id=span.parent_span_id.hex(),
                    kind=span.kind,
                    attributes=_values(span.attributes),
                    resource=resource,
                )


def _values(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}


def _events(body: bytes) -> Iterator[dict[str, Any]]:
    # https://develop.sentry.dev/sdk/data-model/envelopes/: a line of headers, then each item's headers and its payload.
    _, _, rest = body.partition(b"\n")
    while rest:
        line, _, rest = rest.partition(b"\n")
        headers = json.loads(line)
        payload, rest = rest[: headers["length"]], rest[headers["length"] + 1 :]
        if headers["type"] == "event":
            yield json.loads(payload)


@contextmanager
def running_collector() -> Iterator[Collector]:
    """A collector on loopback, as long as the ``with`` block lasts."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            collector.take(self.path, body)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector = Collector(f"http://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()
