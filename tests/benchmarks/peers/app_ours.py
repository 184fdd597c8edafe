import note
from dramatiq import actor

from worker.broker import broker
from worker.sending import enqueue_many

TENANT = "00000000-0000-0000-0000-00000000000a"


@actor(broker=broker, queue_name="attribution", actor_name="bench.noop")
def noop(number):
    note.ran(number)


def send_all(count):
    enqueue_many(noop.message_with_options(args=(number,), tenant_id=TENANT) for number in range(count))
