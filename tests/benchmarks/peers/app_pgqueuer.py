import asyncio
import os
import sys

import asyncpg
import note
from pgqueuer import PgQueuer, Queries
from pgqueuer.db import AsyncpgDriver


async def main():
    queuer = PgQueuer(AsyncpgDriver(await asyncpg.connect(os.environ["PGDSN"])))

    @queuer.entrypoint("noop")
    async def noop(job):
        note.ran(int(job.payload))

    return queuer


def send_all(count):
    async def send():
        queries = Queries(AsyncpgDriver(await asyncpg.connect(os.environ["PGDSN"])))
        for first in range(0, count, 1000):
            numbers = range(first, min(first + 1000, count))
            await queries.enqueue(["noop"] * len(numbers), [b"%d" % n for n in numbers], [0] * len(numbers))

    asyncio.run(send())


if __name__ == "__main__":
    # What `pgq run` does; the command of 1.6 does not start with some versions of typer.
    async def work():
        await (await main()).run(batch_size=int(sys.argv[1]) if sys.argv[1:] else 10)

    asyncio.run(work())
