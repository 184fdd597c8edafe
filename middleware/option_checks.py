"""Refuses messages with options that would break the worker, while their sender can still be told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dramatiq import Broker, Message
from dramatiq.common import q_name
from dramatiq.middleware import Middleware

from middleware.dramatiq_internals import is_dramatiqs_own_enqueue
from middleware.errors import OptionRefused, UnknownFollowUp
from middleware.message_checks import InvalidMessage, check_options, follow_ups

_NAMES = ("on_success", "on_failure", "on_retry_exhausted")


class OptionChecks(Middleware):
    """Checks the options of every message that is sent, and of those that are to follow it.

    Names of actors are checked where the message's own actor is known: a process that only sends may know none.

    Raises (from ``send()``):
      OptionRefused: Naming an option that no worker could handle, and its value.
      UnknownFollowUp: Naming an option and the actor that does not exist.
    """

    def before_enqueue(self, broker: Broker, message: Message[Any], delay: int | None) -> None:
        if is_dramatiqs_own_enqueue(message):
            return
        what = f"message for actor {message.actor_name!r}"
        try:
            check_options(message.options)
        except InvalidMessage as e:
            raise OptionRefused(f"{what}: {e}") from None
        except Exception as e:
            # Dramatiq would log this and send the message as it is.
            raise OptionRefused(f"{what}: its options cannot be checked: {type(e).__name__}") from e
        if delay is None and message.options.get("eta") is not None:
            raise OptionRefused(f"{what}: option 'eta' is set by delay=, not given: {message.options['eta']!r}")
        if message.actor_name in broker.actors:
            _check_names(broker, what, message.options)


def _check_names(broker: Broker, what: str, options: Mapping[str, Any]) -> None:
    for option in _NAMES:
        if options.get(option) is not None:
            _check_name(broker, what, option, options[option])
    for option, target in follow_ups(options):
        _check_name(broker, what, option, target["actor_name"])
        queue_name = q_name(target["queue_name"])
        if queue_name not in broker.get_declared_queues():
            raise UnknownFollowUp(f"{what}: its follow-up goes to queue {queue_name!r}, which is not declared")
        _check_names(broker, what, target["options"])


def _check_name(broker: Broker, what: str, option: str, actor_name: str) -> None:
    if actor_name not in broker.actors:
        raise UnknownFollowUp(f"{what}: option {option!r} names actor {actor_name!r}, which is not declared here")
