"""What the middleware raises.

Dramatiq swallows what a hook raises unless it is a ``MiddlewareError`` from a *before* hook, so all of these are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dramatiq import Message
from dramatiq.errors import BrokerConnectionError, ConnectionFailed, QueueNotFound
from dramatiq.middleware import MiddlewareError, SkipMessage

from db.errors import DramaturgError, InvalidTenant, TenantRequired
from db.failures import Attempt


class SendRefused(MiddlewareError, DramaturgError):
    """Raised by ``send()`` when the message could not be handled once it arrived; nothing was enqueued."""


class OptionRefused(SendRefused):
    """Raised by ``send()`` when an option is of a kind that would break the worker; names it and its value."""


class UnknownFollowUp(SendRefused):
    """Raised by ``send()`` when an option names an actor to send to afterwards that does not exist here."""


class FollowUpNotSent(DramaturgError):
    """Why a message counts as failed though its actor succeeded: what was to follow from it could not be enqueued."""


class UndeclaredQueue(MiddlewareError, QueueNotFound):
    """Raised when an actor is declared on, or a message sent to, a queue that nobody declared."""


class EnqueuedInPart(ConnectionFailed, DramaturgError):
    """Raised by ``enqueue_many()`` when Redis did not say that it has all messages.

    Attributes:
      sent: Those that it has.
      unsure: Those of the step whose answer did not come. It has all of them or none; sending one again can run it
        twice.
      not_sent: Those that it was not asked to take.
    """

    def __init__(
        self, sent: list[Message[Any]], unsure: list[Message[Any]], not_sent: list[Message[Any]], problem: Exception
    ) -> None:
        super().__init__(
            f"of {len(sent) + len(unsure) + len(not_sent)} messages {len(sent)} were enqueued, {len(unsure)} perhaps, "
            f"{len(not_sent)} not: {problem}"
        )
        self.sent, self.unsure, self.not_sent = sent, unsure, not_sent


class InvalidUnique(MiddlewareError, DramaturgError, ValueError):
    """Raised at import when what is to make an actor's messages unique cannot do so; names it and its value."""


class NotUnique(SendRefused):
    """Raised by ``send()`` when there is such a message already, and the actor refuses a second; nothing was enqueued.

    Attributes:
      because_of: The message id of the one that is there.
      state: What that does: ``waiting``, ``running``, or ``recent`` where it has ended within the period.
    """

    def __init__(self, message_id: str, actor_name: str, because_of: str, state: str) -> None:
        super().__init__(
            f"message {message_id} for actor {actor_name!r} is not unique: message {because_of} is {state}"
        )
        self.because_of, self.state = because_of, state


class TenantNotGiven(SendRefused, TenantRequired):
    """Raised by ``send()`` to a tenant-scoped actor when no tenant is given and none is bound."""


class TenantNotValid(SendRefused, InvalidTenant):
    """Raised by ``send()`` when a tenant or correlation id is no UUID, or two are given that differ."""


class TenantError(SkipMessage, DramaturgError):
    """Why a message that arrived without a valid tenant was not run."""


class MessageExpired(SkipMessage, DramaturgError):
    """Why a message that waited longer than its ``max_age`` was not run."""


class NotStarted(SkipMessage, DramaturgError):
    """Why a message was not run: its process stops, and gives it back."""


class SpoolFull(BrokerConnectionError, DramaturgError):
    """Raised when a failure found no room in the spool: Dramatiq keeps the message and asks again 5 seconds later."""


class LeaseLost(SkipMessage, DramaturgError):
    """Why a message was not run: this process was silent for so long that it was given to another."""


class LeaseUnsure(DramaturgError):
    """Raised when a failure was not written, because this process may have lost the message; Redis knows."""


class AlreadyRecorded(SkipMessage, DramaturgError):
    """Why a message that came again was not run: its failure is a row already."""


class WorkerLost(DramaturgError):
    """Why a message was stopped: too many workers were lost while they ran it.

    Attributes:
      starts: How often it was started by a worker that was lost.
      last_start: When it was last, in milliseconds since 1970.
      attempts: Each of those starts.
    """

    def __init__(self, message: str, starts: int, last_start: int, attempts: Sequence[Attempt] = ()) -> None:
        super().__init__(message)
        self.starts = starts
        self.last_start = last_start
        self.attempts = attempts


class NotRecorded(MiddlewareError, BrokerConnectionError):
    """Raised when a failure could not be written: Dramatiq keeps the message and asks again five seconds later.

    Both bases are needed: the first gets it out of the hook, on the second Dramatiq tries again.
    """
