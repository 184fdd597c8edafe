"""Whether traces and failures reach whom the environment names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from middleware import span_export
from worker.check.findings import Finding, ok, warning

TRACES, SENTRY = "traces", "sentry"


def judge_traces(environments: Sequence[Mapping[str, str]]) -> Iterator[Finding]:
    """Judge where spans go, if anywhere.

    Arguments:
      environments: Of the entries that run dramatiq, each whole.
    """
    problems = list(filter(None, map(span_export.problem, environments)))
    if problems:
        found, advice = problems[0]
        yield warning(TRACES, f"nothing is traced: {found}", advice)
    elif any(map(span_export.endpoint, environments)):
        yield ok(TRACES, "spans are exported as OTEL_EXPORTER_OTLP_ENDPOINT says")


def judge_sentry(environments: Sequence[Mapping[str, str]], *, installed: bool) -> Iterator[Finding]:
    """Judge whether Sentry is told of failures.

    Arguments:
      environments: Of the entries that run dramatiq, each whole.
      installed: Whether the extra is.
    """
    if not any(environment.get("SENTRY_DSN", "").strip() for environment in environments):
        return
    if installed:
        yield ok(SENTRY, "Sentry is told of each final failure")
    else:
        yield warning(
            SENTRY,
            "SENTRY_DSN is set, and sentry-sdk is not installed: Sentry is told of no failure",
            "pip install 'dramaturg[sentry]'",
        )
