import asyncio
import os

import note
from oban import Oban, worker


@worker(queue="default")
class Noop:
    async def process(self, job):
        note.ran(job.args["number"])


async def main():
    pool = await Oban.create_pool(os.environ["PGDSN"], max_size=10)
    async with Oban(pool=pool, queues={"default": 8}):
        await asyncio.Event().wait()


def send_all(count):
    async def send():
        pool = await Oban.create_pool(os.environ["PGDSN"])
        oban = Oban(pool=pool)
        for first in range(0, count, 1000):
            await oban.enqueue_many([Noop.new({"number": n}) for n in range(first, min(first + 1000, count))])
        await pool.close()

    asyncio.run(send())


if __name__ == "__main__":
    asyncio.run(main())
