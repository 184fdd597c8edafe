"""Refuses messages with options that would break the worker, while their sender can still be told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from dramatiq import Broker, Message
from dramatiq.common import q_name

from middleware.dramatiq_internals import sent_by_somebody
from middleware.errors import OptionRefused, UnknownFollowUp
from middleware.hooks import BeforeEnqueue
from middleware.message_checks import InvalidMessage, check_options, follow_ups

_NAMES: Final = ("on_success", "on_failure", "on_retry_exhausted")
#: All options that name an actor, if one that follows.
_NAMING: Final = frozenset({*_NAMES, "pipe_target", "group_completion_callbacks"})


class OptionChecks(BeforeEnqueue):
    """Checks the options of every message that is sent, and of those that are to follow it.

    Names of actors are checked where the message's own actor is known: a process that only sends may know none.

    Raises (from ``send()``):
      OptionRefused: Naming an option that no worker could handle, and its value.
      UnknownFollowUp: Naming an option and the actor that does not exist.
    """

    def before_enqueue_many(self, broker: Broker, messages: Sequence[Message[Any]], delay: int | None) -> None:
        for message in sent_by_somebody(messages):
            _check(broker, message, delay)


def _check(broker: Broker, message: Message[Any], delay: int | None) -> None:
    options = message.options
    try:
        check_options(options)
    except InvalidMessage as e:
        raise OptionRefused(f"{_named(message)}: {e}") from None
    except Exception as e:
        # Dramatiq would log this and send the message as it is.
        raise OptionRefused(f"{_named(message)}: its options cannot be checked: {type(e).__name__}") from e
    if delay is None and options.get("eta") is not None:
        raise OptionRefused(f"{_named(message)}: option 'eta' is set by delay=, not given: {options['eta']!r}")
    if not _NAMING.isdisjoint(options) and message.actor_name in broker.actors:
        _check_names(broker, _named(message), options)


def _named(message: Message[Any]) -> str:
    return f"message for actor {message.actor_name!r}"


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
