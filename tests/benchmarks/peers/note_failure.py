"""A failure recorded by a handler: the tenant, a row, a commit, on a connection for each failure or each thread."""

import os
import threading
from contextlib import contextmanager
from uuid import uuid4

import psycopg
from psycopg.types.json import Jsonb

TENANT = "00000000-0000-0000-0000-00000000000a"
_thread = threading.local()


@contextmanager
def _connection():
    """Give one in a transaction: a new one, or where FAILURES=keep the thread's own, which stays open."""
    if os.environ["FAILURES"] == "keep":
        if not hasattr(_thread, "connection"):
            _thread.connection = psycopg.connect(os.environ["DATABASE_URL"], autocommit=True)
        with _thread.connection.transaction():
            yield _thread.connection
    else:
        with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
            yield connection


def record(task_id, task_name, queue, args, kwargs, exception):
    """Insert one row of ``worker_failed_jobs``."""
    with _connection() as connection:
        connection.execute("SELECT set_config('app.current_tenant_id', %s, true)", [TENANT])
        connection.execute(
            """
            INSERT INTO worker_failed_jobs
            (id, task_id, task_name, queue, task_args, task_kwargs, tenant_id, error_type, exception_class,
             error_message)
            VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
            """,
            [
                *(uuid4(), task_id, task_name, queue, Jsonb(list(args)), Jsonb(kwargs), TENANT),
                *("validation_error", type(exception).__name__, str(exception)),
            ],
        )
