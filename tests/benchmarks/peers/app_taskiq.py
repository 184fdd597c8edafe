import asyncio
import os

import note
from taskiq_redis import RedisStreamBroker

broker = RedisStreamBroker(os.environ["REDIS_URL"])


@broker.task
async def noop(number: int) -> None:
    note.ran(number)


def send_all(count):
    async def send():
        await broker.startup()
        for number in range(count):
            await noop.kiq(number)
        await broker.shutdown()

    asyncio.run(send())
