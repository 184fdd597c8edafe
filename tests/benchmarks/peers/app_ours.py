from contextlib import contextmanager

import note
from dramatiq import actor
from sqlalchemy import text

from db import session
from worker.broker import broker
from worker.sending import enqueue_many

TENANT = "00000000-0000-0000-0000-00000000000a"
SELECT = text("SELECT cents FROM bench_prices WHERE id = :id")
INSERT = text("INSERT INTO bench_effects (tenant_id, number, cents) VALUES (:tenant_id, :number, :cents)")


@actor(broker=broker, queue_name="attribution", actor_name="bench.noop")
def noop(number):
    note.ran(number)


@actor(broker=broker, queue_name="attribution", actor_name="bench.transaction")
def transaction(number):
    with session.transaction() as s:
        cents = s.execute(SELECT, {"id": number % 100}).scalar_one()
        s.execute(INSERT, {"tenant_id": TENANT, "number": number, "cents": cents})
    note.ran(number)


@actor(broker=broker, queue_name="attribution", actor_name="bench.fail", max_retries=0)
def fail(number):
    note.ran(number)
    raise ValueError(f"number {number} is none of ours")


JOBS = {"noop": noop, "transaction": transaction, "fail": fail}


def send_all(numbers, job="noop"):
    enqueue_many(JOBS[job].message_with_options(args=(number,), tenant_id=TENANT) for number in numbers)


@contextmanager
def sender():
    yield lambda number: noop.send_with_options(args=(number,), tenant_id=TENANT)


def one_by_one(numbers):
    for number in numbers:
        noop.send_with_options(args=(number,), tenant_id=TENANT)


def in_bulk(numbers):
    for first in range(0, len(numbers), 1000):
        send_all(numbers[first : first + 1000])


def fill(numbers, delay=None):
    enqueue_many(
        (noop.message_with_options(args=(number,), tenant_id=TENANT) for number in numbers),
        delay=delay,
    )
