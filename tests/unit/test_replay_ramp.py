"""How many jobs of a replay may be under way, how many are worth a step, and when too many have failed again."""

from __future__ import annotations

import pytest

from db.replays.runs import ReplaySettings
from worker.replay.ramp import allowed, to_send, too_many_failed, worthwhile


def test_each_step_of_the_ramp_is_climbed_by_as_many_successes() -> None:
    settings = ReplaySettings(ramp=(1, 2, 5))
    assert [allowed(settings, n) for n in range(10)] == [1, 2, 2, 5, 5, 5, 5, 5, 5, 5]


@pytest.mark.parametrize(("step", "worth"), [(1, 1), (199, 1), (200, 100), (500, 250), (10_000, 250)])
def test_where_hundreds_may_be_under_way_a_few_are_not_worth_a_step(step: int, worth: int) -> None:
    assert worthwhile(ReplaySettings(ramp=(step,)), 0) == worth


@pytest.mark.parametrize(
    ("latest", "why"),
    [
        ([], None),
        ([False] * 4, None),
        ([False] * 5, "5 of the last 5 failed again"),
        ([True] * 16 + [False] * 4, None),
        ([False] + [True] * 15 + [False] * 4, "5 of the last 20 failed again"),
        # What came before the window counts no more.
        ([True] * 20 + [False] * 20, None),
    ],
)
def test_more_than_a_fifth_of_the_last_twenty_are_too_many(latest: list[bool], why: str | None) -> None:
    assert too_many_failed(ReplaySettings(), latest) == why


def test_a_rate_saves_up_no_more_than_a_second() -> None:
    assert to_send(None, 0, 0) == float("inf")
    assert to_send(10, 0.5, 0) == 5
    assert to_send(10, 60, 3) == 10
    assert to_send(0.5, 1, 0) == 0.5
