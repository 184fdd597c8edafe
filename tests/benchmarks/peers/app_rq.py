import os

import note
from redis import Redis
from rq import Queue

queue = Queue(connection=Redis.from_url(os.environ["REDIS_URL"]))


def send_all(count):
    queue.enqueue_many([Queue.prepare_data(note.ran, (number,), result_ttl=0) for number in range(count)])
