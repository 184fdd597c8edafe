"""How many jobs of a replay may be under way, and when too many have failed again."""

from __future__ import annotations

from collections.abc import Sequence

from db.replays.runs import ReplaySettings


def allowed(settings: ReplaySettings, succeeded: int) -> int:
    """Return how many may be under way: the next step of the ramp once as many as the step before have succeeded.

    So before a replay stops by itself no more can fail again than the threshold lets, and one, and those that are under
    way by then: as many as this returns.

    Arguments:
      settings: With the ramp.
      succeeded: How many have, so far.
    """
    needed = 0
    for step in settings.ramp:
        needed += step
        if succeeded < needed:
            return step
    return settings.ramp[-1]


def worthwhile(settings: ReplaySettings, succeeded: int) -> int:
    """Return how many are worth a step while others are under way: where hundreds may be, not a few."""
    step = allowed(settings, succeeded)
    return 1 if step < 200 else min(step // 2, 250)


def too_many_failed(settings: ReplaySettings, latest: Sequence[bool]) -> str | None:
    """Return why a replay should stop by itself, or None.

    Fewer outcomes than the window count as if the others had succeeded, so that the first failure is not 100 %.

    Arguments:
      settings: With the threshold and the window.
      latest: How the last jobs ended, the newest first: whether each succeeded.
    """
    failed = sum(not succeeded for succeeded in latest[: settings.window])
    if failed <= settings.threshold * settings.window:
        return None
    return f"{failed} of the last {min(len(latest), settings.window)} failed again"


def to_send(rate: float | None, since_last: float, budget: float) -> float:
    """Return how many may be sent by now, of which the whole part is to be used.

    Arguments:
      rate: A second; None for any number.
      since_last: Seconds since this was last asked.
      budget: What it returned then, less what was sent.
    """
    if rate is None:
        return float("inf")
    # No more than one second's worth is saved up.
    return min(budget + rate * since_last, max(rate, 1.0))
