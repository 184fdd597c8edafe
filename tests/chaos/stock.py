"""Stock Dramatiq with the middleware that one would write for failure rows, to compare with."""

from __future__ import annotations

from uuid import uuid4

import psycopg
from dramatiq import Broker, MessageProxy
from dramatiq.brokers.redis import RedisBroker
from dramatiq.common import q_name
from dramatiq.middleware import (
    AgeLimit,
    Callbacks,
    CurrentMessage,
    GroupCallbacks,
    Middleware,
    Pipelines,
    Retries,
    ShutdownNotifications,
    TimeLimit,
)
from dramatiq.rate_limits.backends import RedisBackend

from middleware.dramatiq_internals import exception_of


class Rows(Middleware):
    """Writes a row for each message that Dramatiq rejects."""

    def __init__(self, database_url: str) -> None:
        self._database_url = database_url

    def before_nack(self, broker: Broker, message: MessageProxy) -> None:
        error, tenant = exception_of(message), message.options.get("tenant_id")
        with psycopg.connect(self._database_url, connect_timeout=5) as connection:
            connection.execute("SELECT set_config('app.current_tenant_id', %s, true)", [tenant or ""])
            connection.execute(
                "INSERT INTO worker_failed_jobs (id, task_id, task_name, queue, tenant_id, error_type, "
                "exception_class, error_message) VALUES (%s, %s, %s, %s, %s, 'unknown', %s, %s)",
                [
                    uuid4(),
                    message.message_id,
                    message.actor_name,
                    q_name(message.queue_name),
                    tenant,
                    type(error).__name__,
                    str(error),
                ],
            )


def make_stock_broker(redis_url: str, database_url: str) -> RedisBroker:
    """Return Dramatiq's broker and middleware, in Dramatiq's order."""
    return RedisBroker(
        url=redis_url,
        middleware=[
            Rows(database_url),
            AgeLimit(),
            TimeLimit(),
            ShutdownNotifications(),
            Callbacks(),
            Pipelines(),
            GroupCallbacks(RedisBackend(url=redis_url)),
            Retries(max_retries=3, min_backoff=200, max_backoff=1_000),
            CurrentMessage(),
        ],
    )
