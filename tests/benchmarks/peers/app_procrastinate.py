import os
from contextlib import contextmanager

import note
import procrastinate

app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=os.environ["PGDSN"]))


@app.task
async def noop(number):
    note.ran(number)


@contextmanager
def sender():
    connector = procrastinate.SyncPsycopgConnector(conninfo=os.environ["PGDSN"])
    with app.replace_connector(connector) as synchronous, synchronous.open():
        yield lambda number: noop.defer(number=number)


def send_all(numbers, job="noop"):
    with sender():
        for first in range(0, len(numbers), 1000):
            noop.batch_defer(*({"number": n} for n in numbers[first : first + 1000]))


def one_by_one(numbers):
    with sender() as send:
        for number in numbers:
            send(number)


in_bulk = send_all
