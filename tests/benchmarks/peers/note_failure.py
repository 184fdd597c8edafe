"""A failure recorded by a handler without a pool: a connection, the tenant, a row."""

import os
from uuid import uuid4

import psycopg
from psycopg.types.json import Jsonb

TENANT = "00000000-0000-0000-0000-00000000000a"


def record(task_id, task_name, queue, args, kwargs, exception):
    """Insert one row of ``worker_failed_jobs``."""
    with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
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
