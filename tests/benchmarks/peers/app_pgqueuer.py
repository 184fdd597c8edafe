import asyncio
import os
import sys
from contextlib import contextmanager

import asyncpg
import note
import uvloop
from pgqueuer import PgQueuer, Queries
from pgqueuer.db import AsyncpgDriver


async def main():
    queuer = PgQueuer(AsyncpgDriver(await asyncpg.connect(os.environ["PGDSN"])))

    @queuer.entrypoint("noop")
    async def noop(job):
        note.ran(int(job.payload))

    return queuer


async def connect():
    return Queries(AsyncpgDriver(await asyncpg.connect(os.environ["PGDSN"])))


def send_all(numbers, job="noop"):
    async def send():
        queries = await connect()
        for first in range(0, len(numbers), 1000):
            some = numbers[first : first + 1000]
            await queries.enqueue(["noop"] * len(some), [b"%d" % n for n in some], [0] * len(some))

    uvloop.run(send())


def one_by_one(numbers):
    async def send():
        queries = await connect()
        for number in numbers:
            await queries.enqueue("noop", b"%d" % number)

    uvloop.run(send())


@contextmanager
def sender():
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        queries = runner.run(connect())
        yield lambda number: runner.run(queries.enqueue("noop", b"%d" % number))


in_bulk = send_all

if __name__ == "__main__":
    # What `pgq run` does; the command of 1.6 does not start with some versions of typer.
    async def work():
        await (await main()).run(batch_size=int(sys.argv[1]) if sys.argv[1:] else 10)

    uvloop.run(work())
