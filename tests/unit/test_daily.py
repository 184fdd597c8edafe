from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from uuid import UUID

import pytest

from db.errors import ConfigurationError
from worker.attribution import follow_run, recompute_day
from worker.channel_days import Days, whole_days
from worker.daily.arguments import day_before, parse_day, parse_models
from worker.daily.following import summary
from worker.daily.runs import Run
from worker.recompute import Model, parse_window
from worker.scheduler import Schedule
from worker.settings import Settings
from worker.testing import TestBroker, stub_broker, stub_worker

__all__ = ["stub_broker", "stub_worker"]

NOW = datetime(2025, 1, 2, 0, 30, tzinfo=UTC)


def test_a_day_that_is_over() -> None:
    assert parse_day("2025-01-01", NOW) == parse_day(date(2025, 1, 1), NOW) == date(2025, 1, 1)
    # It is the second of January in UTC, whatever the clock at hand says.
    assert parse_day("2025-01-01", NOW.astimezone(timezone(timedelta(hours=-5)))) == date(2025, 1, 1)
    assert day_before(NOW.astimezone(timezone(timedelta(hours=-5)))) == date(2025, 1, 1)


@pytest.mark.parametrize(
    "bad", ["", "yesterday", "2025-02-30", "2025-01-01T00:00", 20250101, True, NOW, ["2025-01-01"]]
)
def test_what_is_no_date_is_named(bad: object) -> None:
    with pytest.raises(ValueError, match=r"^day: .* is not an ISO 8601 date$") as caught:
        parse_day(bad, NOW)
    assert repr(bad)[:80] in str(caught.value)


@pytest.mark.parametrize("late", ["2025-01-02", "2025-01-03", "9999-12-31"])
def test_a_day_that_is_not_over_is_named(late: str) -> None:
    with pytest.raises(ValueError, match=rf"^day: {late} is not over: in UTC it is 2025-01-02$"):
        parse_day(late, NOW)


def test_models() -> None:
    assert parse_models(["linear", "time_decay", "linear"]) == (Model.LINEAR, Model.TIME_DECAY)
    for bad, message in (
        ([], "models: must name at least one"),
        ("linear", "models: must be a list of models, not 'linear'"),
        (5, "models: must be a list of models, not 5"),
        (["linear", "guess"], "models: 'guess' is not one of first_touch"),
        ([None], "models: None is not one of"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_models(bad)
    stub = {"REDIS_URL": "stub://"}
    assert Settings.load({**stub, "ATTRIBUTION_MODELS": "linear, time_decay"}).attribution_models == (
        "linear",
        "time_decay",
    )
    with pytest.raises(ConfigurationError, match=r"^ATTRIBUTION_MODELS: model: 'guess' is not one of"):
        Settings.load({**stub, "ATTRIBUTION_MODELS": "linear,guess"})


@pytest.mark.parametrize(
    ("start", "end", "first", "until"),
    [
        ("2025-01-01", "2025-01-02", "2025-01-01", "2025-01-02"),
        ("2025-01-01T00:00:01", "2025-01-04T23:59", "2025-01-02", "2025-01-04"),
        ("2025-01-01T00:00+01:00", "2025-01-02T00:00+01:00", None, None),
        ("2025-01-01T06:00", "2025-01-01T07:00", None, None),
        ("2025-01-01T06:00", "2025-01-02T00:00", None, None),
        ("9999-12-31T06:00", "9999-12-31T07:00", None, None),
        ("0001-01-01", "9999-12-31T23:59", "0001-01-01", "9999-12-31"),
    ],
)
def test_the_days_that_a_window_holds_whole(start: str, end: str, first: str | None, until: str | None) -> None:
    expected = Days(date.fromisoformat(first), date.fromisoformat(until)) if first and until else None
    assert whole_days(parse_window(start, end)) == expected


def test_a_summary_says_what_is_missing() -> None:
    def said(expected: int | None, sent: int, succeeded: int, failed: int) -> str:
        some = UUID(int=1)
        return summary(
            Run(some, None, date(2025, 1, 1), some, NOW, None, expected, sent, succeeded, failed, 0, None)
        ).removeprefix("2025-01-01: ")

    assert said(3, 3, 3, 0) == "3 of 3 recomputes succeeded"
    assert said(1, 1, 0, 1) == "0 of 1 recompute succeeded, 1 failed"
    assert said(5, 4, 2, 1) == "2 of 5 recomputes succeeded, 1 failed, 2 missing, 1 of them not sent"
    assert said(None, 0, 0, 0).startswith("it is not known for whom")


def test_it_runs_at_night_for_all_tenants() -> None:
    assert recompute_day.options["schedule"] == Schedule("10 2 * * *")
    assert recompute_day.options["tenant_scoped"] is False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"day": "2025-13-01"}, "day: '2025-13-01' is not an ISO 8601 date"),
        ({"day": "9000-01-01"}, "day: 9000-01-01 is not over"),
        ({"models": ["guess"]}, "models: 'guess' is not one of"),
    ],
)
def test_bad_input_is_a_row_at_the_first_try_and_nothing_is_sent(
    arguments: dict[str, object], message: str, stub_broker: TestBroker, stub_worker: object
) -> None:
    # There is no database here: nothing was begun.
    recompute_day.send_with_options(kwargs=arguments)
    follow_run.send(run_id="x")
    stub_broker.join(recompute_day.queue_name)
    failures = sorted(stub_broker.failed_jobs, key=lambda f: f.task_name)
    assert [(f.error_type, f.retry_count) for f in failures] == [("validation_error", 0)] * 2
    assert failures[0].error_message == "run_id: 'x' is not a UUID"
    assert failures[1].error_message.startswith(message)
    assert stub_broker.queues["attribution"].qsize() == 0
