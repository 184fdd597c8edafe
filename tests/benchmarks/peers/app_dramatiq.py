import os

import dramatiq
import note
from dramatiq.brokers.redis import RedisBroker

dramatiq.set_broker(RedisBroker(url=os.environ["REDIS_URL"]))


@dramatiq.actor
def noop(number):
    note.ran(number)


def send_all(count):
    for number in range(count):
        noop.send(number)
