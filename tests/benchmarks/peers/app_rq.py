import os
from contextlib import contextmanager

import note
from redis import Redis
from rq import Queue

queue = Queue(connection=Redis.from_url(os.environ["REDIS_URL"]))


def send_all(numbers, job="noop"):
    queue.enqueue_many([Queue.prepare_data(note.ran, (number,), result_ttl=0) for number in numbers])


def one_by_one(numbers):
    for number in numbers:
        queue.enqueue(note.ran, number, result_ttl=0)


@contextmanager
def sender():
    yield lambda number: queue.enqueue(note.ran, number, result_ttl=0)


in_bulk = send_all
