import os
from contextlib import contextmanager
from uuid import uuid4

import dramatiq
import note
from dramatiq.brokers.redis import RedisBroker

TENANT = "00000000-0000-0000-0000-00000000000a"
broker = RedisBroker(url=os.environ["REDIS_URL"])
dramatiq.set_broker(broker)


if os.environ.get("FAILURES") in ("connect", "keep"):

    class Recorded(dramatiq.Middleware):
        def after_process_message(self, broker, message, *, result=None, exception=None):
            message.exception = exception

        def before_nack(self, broker, message):
            from note_failure import record

            record(
                message.message_id,
                message.actor_name,
                message.queue_name,
                message.args,
                message.kwargs,
                message.exception,
            )

    broker.add_middleware(Recorded())


@dramatiq.actor
def noop(number):
    note.ran(number)


@dramatiq.actor
def transaction(number, tenant_id):
    from note_tenant import transaction

    transaction(number, tenant_id)
    note.ran(number)


@dramatiq.actor(max_retries=0)
def fail(number):
    note.ran(number)
    raise ValueError(f"number {number} is none of ours")


JOBS = {"noop": noop, "transaction": transaction, "fail": fail}


def send_all(numbers, job="noop"):
    more = (TENANT,) if job == "transaction" else ()
    for number in numbers:
        JOBS[job].send(number, *more)


@contextmanager
def sender():
    yield noop.send


one_by_one = send_all


def fill(numbers, delay=None):
    """Put into Redis what ``send()`` would, many in a round trip: a million would take minutes."""
    pipeline = broker.client.pipeline(transaction=False)
    for number in numbers:
        message = noop.message(number)
        queue = message.queue_name
        if delay is not None:
            queue = dramatiq.common.dq_name(queue)
            options = {"eta": dramatiq.common.current_millis() + delay}
            message = message.copy(queue_name=queue, options={**message.options, **options})
        redis_id = str(uuid4())
        message = message.copy(options={**message.options, "redis_message_id": redis_id})
        pipeline.hset(f"dramatiq:{queue}.msgs", redis_id, message.encode())
        pipeline.rpush(f"dramatiq:{queue}", redis_id)
        if len(pipeline) >= 2_000:
            pipeline.execute()
    pipeline.execute()
