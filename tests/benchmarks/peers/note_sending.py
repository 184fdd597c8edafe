"""Sends as one peer does: ``python note_sending.py APP WHAT ARGUMENTS...``, and prints what it saw as JSON."""

import importlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path


class Noted:
    """The jobs that were noted, read on as they come."""

    def __init__(self):
        self.lines = []
        self._rest = b""
        self._file = None

    def read(self):
        """Return how many there are by now."""
        path = Path(os.environ["RAN"])
        if self._file is None and path.exists():
            self._file = path.open("rb")
        if self._file is not None:
            *whole, self._rest = (self._rest + self._file.read()).split(b"\n")
            self.lines += whole
        return len(self.lines)


def timed(send, first, count):
    """Return the seconds that it took to send so many numbers, after the first hundred, which are left out."""
    send(range(first, first + 100))
    started = time.perf_counter()
    send(range(first + 100, first + 100 + count))
    return time.perf_counter() - started


def idle(app, count, least, most):
    """Send one message at a time, and return the milliseconds from each call to its job's start."""
    noted, sent, rng = Noted(), {}, random.Random(7)  # noqa: S311
    with app.sender() as send:
        for number in range(count):
            time.sleep(rng.uniform(least, most))
            sent[number] = time.monotonic_ns()
            send(number)
            until = time.monotonic() + 30
            while noted.read() <= number:
                if time.monotonic() > until:
                    raise SystemExit(f"message {number} did not run within 30 seconds")
                time.sleep(0.005)
    began = {int(number): int(at) for number, _, at in (line.split() for line in noted.lines)}
    return [(began[number] - at) / 1e6 for number, at in sent.items()]


def keep(app, first, depth):
    """Send numbers from ``first`` on, so that no more than ``depth`` have not ended, until told to end by SIGTERM."""
    noted, told = Noted(), []
    signal.signal(signal.SIGTERM, lambda *_: told.append(True))
    while not told:
        some = noted.read() + depth - first
        if some >= max(1, depth // 10):
            app.fill(range(first, first + some))
            first += some
        else:
            time.sleep(0.001)
    return first


def main(name, what, *given):
    app = importlib.import_module(name)
    if what == "all":
        started = time.perf_counter()
        app.send_all(range(int(given[0])), given[1])
        return time.perf_counter() - started
    if what == "fill":
        return app.fill(range(int(given[0])), *map(int, given[1:]))
    if what == "idle":
        return idle(app, int(given[0]), float(given[1]), float(given[2]))
    if what == "keep":
        return keep(app, *map(int, given))
    send = getattr(app, what, None)
    return send and timed(send, *map(int, given))


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
