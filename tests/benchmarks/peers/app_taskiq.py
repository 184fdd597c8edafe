import asyncio
import os
from contextlib import contextmanager

import note
import uvloop
from taskiq_redis import RedisStreamBroker

broker = RedisStreamBroker(os.environ["REDIS_URL"])


@broker.task
async def noop(number: int) -> None:
    note.ran(number)


def send_all(numbers, job="noop"):
    async def send():
        await broker.startup()
        for number in numbers:
            await noop.kiq(number)
        await broker.shutdown()

    uvloop.run(send())


@contextmanager
def sender():
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(broker.startup())
        yield lambda number: runner.run(noop.kiq(number))
        runner.run(broker.shutdown())


one_by_one = send_all
