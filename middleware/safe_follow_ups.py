"""Dramatiq's callbacks and pipelines, from which no message gets lost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dramatiq import Broker, MessageProxy
from dramatiq.middleware import Callbacks, Pipelines
from loguru import logger

from middleware.errors import FollowUpNotSent


@contextmanager
def failing(message: MessageProxy, what: str, exception: BaseException | None) -> Iterator[None]:
    """Fail a message whose follow-up cannot be enqueued. One whose actor failed has its retry or row already."""
    try:
        yield
    except Exception as e:  # noqa: BLE001 - Dramatiq would log it and acknowledge the message
        text = f"{what} of message {message.message_id} could not be enqueued: {type(e).__name__}: {e}"
        if exception is not None:
            logger.error("{}", text)
            exception.add_note(text)
            return
        failure = FollowUpNotSent(text)
        failure.__cause__ = e
        message.fail()
        message.stuff_exception(failure)


class SafeCallbacks(Callbacks):
    """Fails a message that succeeded and whose ``on_success`` cannot be enqueued."""

    def after_process_message(
        self,
        broker: Broker,
        message: MessageProxy,
        *,
        result: Any = None,
        exception: BaseException | None = None,
    ) -> None:
        if exception is None and message.failed:
            return
        with failing(message, "on_success" if exception is None else "on_failure", exception):
            super().after_process_message(broker, message, result=result, exception=exception)


class SafePipelines(Pipelines):
    """Fails a message that succeeded and whose ``pipe_target`` cannot be enqueued."""

    def after_process_message(
        self,
        broker: Broker,
        message: MessageProxy,
        *,
        result: Any = None,
        exception: BaseException | None = None,
    ) -> None:
        if message.options.get("pipe_target") is None:
            return
        with failing(message, "pipe_target", exception):
            super().after_process_message(broker, message, result=result, exception=exception)
