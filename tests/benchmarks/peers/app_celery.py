import os

import note
from celery import Celery

app = Celery("app_celery", broker=os.environ["REDIS_URL"])
app.conf.update(
    task_acks_late=True, task_reject_on_worker_lost=True, task_ignore_result=True, worker_hijack_root_logger=False
)


@app.task
def noop(number):
    note.ran(number)


def send_all(count):
    for number in range(count):
        noop.delay(number)
