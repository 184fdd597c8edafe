"""What a job costs while 100,000 or 1,000,000 wait, and beside 100,000 that are delayed; and where no more than 10 or
1,000 have not ended at a time, because they are sent as others end.

Processor time of the worker and of Redis for each of the first 20,000 jobs; Redis' part has that of sending one in it.
"""

from __future__ import annotations

import redis

from tests.benchmarks.peers import peers
from tests.benchmarks.peers.reckoning import Incomplete, check
from tests.benchmarks.peers.rows.row import Figure, Row
from tests.benchmarks.peers.running import Stage

WAITING = (10, 1_000, 100_000, 1_000_000)
DELAYED = 100_000
DAY = 86_400_000
COUNT = 20_000
_NAMES = {**{f"{waiting}": waiting for waiting in WAITING}, "delayed": 1_000}


def _costs(stage: Stage, count: int, waiting: int) -> tuple[float, float]:
    """Return microseconds of the worker and of Redis a job."""
    jobs = min(count, waiting * 200)
    enough = waiting >= 2 * jobs
    redis_used = stage.redis_seconds()
    stage.send("fill", waiting)
    sending_took = (stage.redis_seconds() - redis_used) / waiting
    sending = None if enough else stage.begin("keep", waiting, waiting)
    with stage.worker() as worker:
        first = worker.wait_for(jobs // 10, look_every=0.01)
        used, redis_used = worker.processor_time(), stage.redis_seconds()
        last = worker.wait_for(first + jobs, look_every=0.01)
        used, redis_used = worker.processor_time() - used, stage.redis_seconds() - redis_used
    sent = waiting
    a_job = redis_used / (last - first)
    if sending:
        # As many were sent as ended, so that is in it.
        sending.terminate()
        sent = stage.end(sending)
    else:
        a_job += sending_took
    again = check([note.number for note in stage.notes()], range(sent), all_of_them=False)
    if again:
        raise Incomplete(f"{again} jobs ran again")
    return used / (last - first) * 1e6, a_job * 1e6


def measure(stage: Stage, count: int) -> dict[str, float]:
    """All depths, one after the other, each with an empty Redis."""
    figures = {}
    for name, waiting in _NAMES.items():
        with redis.Redis.from_url(stage.redis_url) as client:
            client.flushall()
        stage.noted.unlink(missing_ok=True)
        if name == "delayed":
            stage.send("fill", min(DELAYED, count * 5), DAY)
        # A smaller count, for trying this out, makes less wait as well.
        figures[f"cpu {name}"], figures[f"redis {name}"] = _costs(stage, count, min(waiting, count * 50))
    return figures


def _words(name: str) -> str:
    if name == "delayed":
        return f"{DELAYED:,} delayed beside"
    return f"{_NAMES[name]:,} {'waiting' if _NAMES[name] > COUNT else 'at a time'}"


ROW = Row(
    title="What a no-op job costs while others wait, the first {count}",
    peers=(peers.OURS, peers.STOCK, peers.STOCK_AT_BEST),
    count=COUNT,
    figures={
        **{f"cpu {name}": Figure(f"the worker's µs, {_words(name)}", more=False) for name in _NAMES},
        **{f"redis {name}": Figure(f"Redis' µs, sending too, {_words(name)}", more=False) for name in _NAMES},
    },
    measure=measure,
)
