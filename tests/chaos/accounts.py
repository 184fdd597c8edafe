"""What is known of each message before its ending is looked for."""

from __future__ import annotations

from dataclasses import dataclass, field

#: ``send()`` returned; it raised, so that it may have been sent or not; it comes once those have succeeded that it is
#: to follow; it was sent inside a transaction, so that it comes if that was committed; or it was left out, because
#: there was one already.
ACCEPTED, UNSURE, FOLLOWS, TRANSACTION = "accepted", "unsure", "follows", "transaction"
LEFT_OUT = "left out"


@dataclass
class Account:
    """A message that was sent, or is to follow from others.

    Attributes:
      tenant: Whose it is; none where that cannot be read.
      given: :data:`ACCEPTED`, :data:`UNSURE`, :data:`FOLLOWS`, :data:`TRANSACTION` or :data:`LEFT_OUT`.
      after: Ids of those that it follows.
    """

    id: str
    kind: str
    queue: str
    tenant: str | None
    max_retries: int = 3
    given: str = ACCEPTED
    after: list[str] = field(default_factory=list)
    error: str = ""
