import os
from contextlib import contextmanager

import note
from celery import Celery
from celery.signals import task_failure

app = Celery("app_celery", broker=os.environ["REDIS_URL"])
app.conf.update(
    task_acks_late=True, task_reject_on_worker_lost=True, task_ignore_result=True, worker_hijack_root_logger=False
)
TENANT = "00000000-0000-0000-0000-00000000000a"


@app.task
def noop(number):
    note.ran(number)


@app.task
def transaction(number, tenant_id):
    from note_tenant import transaction

    transaction(number, tenant_id)
    note.ran(number)


@app.task
def fail(number):
    note.ran(number)
    raise ValueError(f"number {number} is none of ours")


if os.environ.get("FAILURES") == "connect":

    @task_failure.connect
    def record(sender, task_id, exception, args, kwargs, **_):
        from note_failure import record

        record(task_id, sender.name, "celery", args, kwargs, exception)


JOBS = {"noop": noop, "transaction": transaction, "fail": fail}


def send_all(numbers, job="noop"):
    more = (TENANT,) if job == "transaction" else ()
    for number in numbers:
        JOBS[job].delay(number, *more)


@contextmanager
def sender():
    yield noop.delay


one_by_one = send_all
