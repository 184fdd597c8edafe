import asyncio
import os
from contextlib import contextmanager

import note
import uvloop
from oban import Oban, worker


@worker(queue="default")
class Noop:
    async def process(self, job):
        note.ran(job.args["number"])


async def main():
    pool = await Oban.create_pool(os.environ["PGDSN"], max_size=10)
    async with Oban(pool=pool, queues={"default": 8}):
        await asyncio.Event().wait()


async def connect():
    return await Oban.create_pool(os.environ["PGDSN"])


def send_all(numbers, job="noop"):
    async def send():
        pool = await connect()
        oban = Oban(pool=pool)
        for first in range(0, len(numbers), 1000):
            await oban.enqueue_many([Noop.new({"number": n}) for n in numbers[first : first + 1000]])
        await pool.close()

    uvloop.run(send())


def one_by_one(numbers):
    async def send():
        pool = await connect()
        oban = Oban(pool=pool)
        for number in numbers:
            await oban.enqueue(Noop.new({"number": number}))
        await pool.close()

    uvloop.run(send())


@contextmanager
def sender():
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        pool = runner.run(connect())
        oban = Oban(pool=pool)
        yield lambda number: runner.run(oban.enqueue(Noop.new({"number": number})))
        runner.run(pool.close())


in_bulk = send_all

if __name__ == "__main__":
    uvloop.run(main())
