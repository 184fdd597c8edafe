"""Where spans go by OpenTelemetry's own variables, and what is said where they cannot."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from loguru import logger
from opentelemetry.util.re import parse_env_headers

from middleware import sentry, span_export
from middleware.redaction import Redactor
from middleware.span_export import Quiet
from middleware.tracing import Tracing, current_trace_id
from worker.check.findings import Status
from worker.check.observers import judge_sentry, judge_traces
from worker.settings import Settings

HERE = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}
CANNOT = [
    ({"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4317"}, "OTEL_EXPORTER_OTLP_ENDPOINT is no URL"),
    ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://"}, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT is no URL"),
    ({**HERE, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "OTEL_EXPORTER_OTLP_PROTOCOL is not http/protobuf"),
]


@pytest.fixture
def said() -> Iterator[list[str]]:
    lines: list[str] = []
    sink = logger.add(lambda line: lines.append(str(line).strip()), format="{message}")
    yield lines
    logger.remove(sink)


@pytest.mark.parametrize("off", [{"OTEL_SDK_DISABLED": "true"}, {"OTEL_TRACES_EXPORTER": "none"}])
def test_nothing_is_said_or_done_where_traces_are_not_wanted(said: list[str], off: dict[str, str]) -> None:
    for environ in ({}, {"OTEL_EXPORTER_OTLP_ENDPOINT": " "}, {**HERE, **off}):
        assert span_export.start(Redactor(), "here/1", environ) is None
        assert list(judge_traces([environ])) == []
    assert said == []


@pytest.mark.parametrize(("environ", "why"), CANNOT)
def test_why_nothing_can_be_exported_is_said(said: list[str], environ: dict[str, str], why: str) -> None:
    assert span_export.start(Redactor(), "here/1", environ) is None
    assert [why in line for line in said] == [True]
    (finding,) = judge_traces([{}, environ])
    assert (finding.status, why in finding.found) == (Status.WARNING, True)


def test_extras_that_are_missing_are_said_once_and_cost_nothing(
    said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(span_export, "find_spec", lambda _: None)
    monkeypatch.setattr(sentry, "find_spec", lambda _: None)
    tracing = Tracing(Redactor(), lambda: span_export.start(Redactor(), "here/1", HERE))
    teller = sentry.Sentry("http://key@127.0.0.1:1/1")
    anything: Any = None
    for middleware in (tracing, teller):
        middleware.before_worker_boot(anything, anything)
    teller.announce(anything, None)()
    for middleware in (tracing, teller):
        middleware.after_worker_shutdown(anything, anything)
    assert [line.partition("'dramaturg[")[2][:6] for line in said] == ["otel]'", "sentry"]
    assert [one.status for one in judge_traces([HERE])] == [Status.WARNING]
    dsn = {"SENTRY_DSN": "http://key@127.0.0.1:1/1"}
    assert [one.status for one in judge_sentry([dsn], installed=sentry.is_installed())] == [Status.WARNING]
    assert [one.status for one in judge_sentry([dsn], installed=True)] == [Status.OK]
    assert list(judge_sentry([{}], installed=False)) == []
    assert current_trace_id() is None


def test_where_they_can_go_they_do() -> None:
    assert [one.status for one in judge_traces([HERE])] == [Status.OK]


def test_a_collector_that_is_away_is_said_once_in_a_while_and_no_header(
    said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet = Quiet(Redactor())
    log = logging.getLogger("opentelemetry")
    log.addHandler(quiet)
    try:
        for n in range(5):
            log.warning("Transient error %s, password=%s", n, "hunter2")
        monkeypatch.setattr(span_export, "SAY_EVERY", -1.0)
        parse_env_headers("x-key hunter2", liberal=True)
    finally:
        log.removeHandler(quiet)
    assert said == [
        "OpenTelemetry: Transient error 0, password=[redacted] (0 lines before it left out)",
        "OpenTelemetry: a header of OTEL_EXPORTER_OTLP_HEADERS is not name=value (4 lines before it left out)",
    ]


@pytest.mark.parametrize(
    "dsn", ["hunter2", "https://host/1", "https://hunter2@host/", "ftp://hunter2@host/1", "https://hunter2@[/1"]
)
def test_a_dsn_that_is_none_is_refused_without_being_repeated(dsn: str) -> None:
    with pytest.raises(Exception, match="SENTRY_DSN: ") as refused:
        Settings.load({"DATABASE_URL": "postgres://u@h/n", "SENTRY_DSN": dsn})
    assert "hunter2" not in str(refused.value)
