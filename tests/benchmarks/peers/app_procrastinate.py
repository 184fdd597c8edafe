import os

import note
import procrastinate

app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=os.environ["PGDSN"]))


@app.task
async def noop(number):
    note.ran(number)


def send_all(count):
    connector = procrastinate.SyncPsycopgConnector(conninfo=os.environ["PGDSN"])
    with app.replace_connector(connector) as synchronous, synchronous.open():
        for first in range(0, count, 1000):
            noop.batch_defer(*({"number": n} for n in range(first, min(first + 1000, count))))
