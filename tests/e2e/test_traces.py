"""Worker processes export their spans, and tell Sentry of their failures, before they end."""

from __future__ import annotations

import signal
import socket
from uuid import uuid4

from tests.collector import running_collector
from tests.e2e.deployment import Deployment
from tests.waiting import eventually
from worker.housekeeping import ping
from worker.maintenance import verify_window

WINDOW = {"window_start": "2025-01-01T00:00:00Z", "window_end": "no date"}


def test_what_ended_last_is_exported_and_no_collector_is_waited_for(deployment: Deployment) -> None:
    with running_collector() as collector, socket.create_server(("127.0.0.1", 0)) as silent:
        deployment.start(
            *("dramatiq", "worker.housekeeping", "-p", "1", "-t", "1"),
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
            OTEL_RESOURCE_ATTRIBUTES="service.name=shop",
            # So that nothing is sent before the end.
            OTEL_BSP_SCHEDULE_DELAY="60000",
            SENTRY_DSN=collector.dsn,
            SENTRY_RELEASE="1.7",
            SENTRY_ENVIRONMENT="staging",
        )
        # It takes what it is sent, and never answers.
        away = deployment.start(
            *("dramatiq", "worker.maintenance", "-p", "1", "-t", "1"),
            OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{silent.getsockname()[1]}",
            OTEL_EXPORTER_OTLP_TIMEOUT="60",
            OTEL_BSP_SCHEDULE_DELAY="10",
        )
        deployment.send(ping)
        failed = deployment.send(ping, fail=True)
        for _ in range(5):
            deployment.send(verify_window, uuid4(), **WINDOW)
        eventually(lambda: len(deployment.failures()) == 6, seconds=60)
        eventually(lambda: deployment.waiting("housekeeping") + deployment.waiting("maintenance") == 0)
        for process in deployment.processes:
            process.send_signal(signal.SIGTERM)
        # One that waited for its collector would be ended by our own shutdown, with status 1.
        assert [process.wait(30) for process in deployment.processes] == [0, 0], away.read_text()
    names = sorted(span.name.split()[0] for span in collector.spans)
    assert names == ["SELECT", "process", "process"]
    assert {span.resource["service.name"] for span in collector.spans} == {"shop"}
    pings = [span for span in collector.spans if span.name.startswith("process")]
    assert [span.attributes["dramaturg.outcome"] for span in pings] == ["succeeded", "failed"]
    (event,) = collector.events
    assert event["tags"]["message_id"] == failed.message_id
    assert (event["release"], event["environment"]) == ("1.7", "staging")
    assert event["contexts"]["job"]["trace_id"] == pings[1].trace_id
