"""Whether this host's clock and a server's agree.

Leases go by Redis' clock alone, so a skew loses nothing. But delays, ``max_age`` and the times in failure rows go by
the clocks of hosts and of Postgres, and are off by as much as those.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from worker.check.findings import Finding, error, ok, warning

NAME = "clock"
#: Seconds. A host that keeps time (NTP) is off by less than a tenth of the first; beyond the second nothing keeps its
#: time, so it will drift on, and first retries (``MIN_BACKOFF``, 15 s) come at a third of their time or late by one.
WARNING, ERROR = 1.0, 5.0
_SAMPLES = 3


def check_clock(server: str, server_time: Callable[[], float]) -> Iterator[Finding]:
    """Compare this host's clock with a server's.

    Arguments:
      server: For people: ``Redis``.
      server_time: Asks it for its time, in seconds since 1970.
    """
    yield judge_skew(server, *min((_sample(server_time) for _ in range(_SAMPLES)), key=lambda sample: sample[1]))


def _sample(server_time: Callable[[], float]) -> tuple[float, float]:
    """Return how far the server is ahead, and by how much that may be wrong: half a round trip."""
    host, before = time.time(), time.monotonic()
    theirs = server_time()
    half = (time.monotonic() - before) / 2
    return theirs - (host + half), half


def judge_skew(server: str, ahead: float, uncertain: float) -> Finding:
    """Judge a skew; what may be the network's doing is not held against the clocks. All in seconds."""
    certain = max(0.0, abs(ahead) - uncertain)
    found = f"the clock of {server} is {abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} this host's"
    if certain > WARNING:
        make = error if certain > ERROR else warning
        return make(
            NAME,
            f"{found}: delays, max_age and failed_at are off by as much",
            "Let both keep time by NTP: timedatectl set-ntp true",
        )
    return ok(NAME, f"the clock of {server} and this host's agree to {max(certain, uncertain, 0.001):.3f} s")
