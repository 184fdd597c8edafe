"""Effects that happen once, however often their message is executed.

What :func:`once` records stands in the same transaction as the effect: both are committed, or neither.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import CursorResult, Result, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from db.current_message import Execution, current_execution
from db.errors import OnceError
from db.open_transaction import OpenTransaction, innermost

#: Characters of a key.
KEY_AT_MOST: Final = 255
#: Characters of a message id that is kept as it is.
MESSAGE_ID_AT_MOST: Final = 155

# Waits for another transaction that records the same and has not ended yet. The tenant is the one that Postgres was
# told; none in operator_transaction().
_RECORD = text(
    """
    INSERT INTO worker_once (tenant_id, key, message_id)
    VALUES (CAST(NULLIF(current_setting('app.current_tenant_id', true), '') AS uuid), :key, :message_id)
    ON CONFLICT DO NOTHING
    """
)


def once(key: str | None = None) -> bool:
    """Tell whether this is the first time, and record it in the open ``with transaction()``; one statement.

    Without a key it is for the message at hand: ``True`` the first time, ``False`` in a retry, redelivery or replay
    after that was committed. What was rolled back was not recorded. While another transaction has recorded the same and
    not ended, it waits, as for any lock.

    Arguments:
      key: Tells several effects of one message, or the same effect of several messages. It is unique to the tenant,
        across messages and actors, so it must say what the effect is and for what: ``f"receipt:{order_id}"``.
        1 to 255 characters.

    Raises:
      OnceError: When no ``with transaction()`` is open, or it is an ``async`` one (see :func:`once_async`); without a
        key outside of a job, or for the second time in one execution; when a transaction around this one has recorded
        the same, for which this one would wait for ever.
      ValueError: When ``key`` cannot be one.
      sqlalchemy.exc.OperationalError: When it waited for longer than ``lock_timeout``.
    """
    attempt = _attempt("once", key)
    session = attempt.transaction.session
    if not isinstance(session, Session):
        raise OnceError("once() was called inside `async with transaction()`, which needs `await once_async()`")
    return attempt.answer(session.execute(_RECORD, attempt.values()))


def once_async(key: str | None = None) -> Answer:
    """Return what :func:`once` does, to be awaited, for ``async with transaction()``: ``if await once_async(): ...``.

    Raises:
      OnceError: When no ``async with transaction()`` is open; otherwise as :func:`once`. Also when the answer is used
        as a truth without having been awaited.
      ValueError: When ``key`` cannot be one.
    """
    attempt = _attempt("once_async", key)
    if not isinstance(attempt.transaction.session, AsyncSession):
        raise OnceError("once_async() was called inside `with transaction()`, which needs `once()`")
    return Answer(attempt)


class Answer:
    """Await it. A coroutine that somebody forgot to await would always be true, and the effect happen every time."""

    def __init__(self, attempt: _Attempt) -> None:
        self._attempt = attempt

    def __await__(self) -> Generator[Any, None, bool]:
        return self._ask().__await__()

    async def _ask(self) -> bool:
        session = self._attempt.transaction.session
        if not isinstance(session, AsyncSession):
            raise OnceError("once_async() was awaited after its transaction had ended")
        return self._attempt.answer(await session.execute(_RECORD, self._attempt.values()))

    def __bool__(self) -> bool:
        raise OnceError("once_async() was not awaited: say `if await once_async():`")


@dataclass(frozen=True, slots=True)
class _Attempt:
    """One call: what it is to record, and where."""

    transaction: OpenTransaction
    recorded_as: str
    message_id: str | None
    #: The execution that asked, where it gave no key.
    without_key: Execution | None

    def values(self) -> dict[str, str | None]:
        return {"key": self.recorded_as, "message_id": self.message_id}

    def answer(self, result: Result[Any]) -> bool:
        """Return whether it was recorded.

        Raises:
          OnceError: When it was not because this execution had asked before: in the next one, too, all effects but the
            first would be skipped, and nobody would know.
        """
        assert isinstance(result, CursorResult)  # noqa: S101 - what an INSERT returns
        first = result.rowcount == 1
        if first:
            self.transaction.recorded.add(self.recorded_as)
        if self.without_key is not None:
            again = _asked_before(self.without_key)
            if again and not first:
                raise _asked_twice(self.without_key)
            self.without_key.asked_in = self.transaction
        return first


def _attempt(function: str, key: str | None) -> _Attempt:
    transaction = innermost()
    if transaction is None:
        raise OnceError(
            f"{function}() was called outside of a transaction: call it inside the one that has the effect, "
            "so that both are committed or neither"
        )
    execution = current_execution()
    message_id = _message_id(execution) if execution is not None else None
    without_key = None
    if key is not None:
        _check(key)
        # Not an f-string, which may write an enum's member by its name.
        recorded_as = "key:" + key
    elif execution is None or message_id is None:
        raise OnceError(f"{function}() needs a key here: it was called outside of a job, where no message is known")
    else:
        without_key, recorded_as = execution, "message:" + message_id
        asked_in = execution.asked_in
        if asked_in is not None and asked_in is not transaction and asked_in.session is not None:
            # We would wait for that one to end, and it may wait for us.
            raise _asked_twice(execution)
    _check_enclosing(transaction, recorded_as, key)
    return _Attempt(transaction, recorded_as, message_id, without_key)


def _asked_before(execution: Execution) -> bool:
    return execution.asked_in is not None and not execution.asked_in.rolled_back


def _asked_twice(execution: Execution) -> OnceError:
    return OnceError(
        f"message {execution.message_id!r} called once() without a key twice in one execution, and only the first "
        "effect would ever happen: give each effect a key of its own, as in once('receipt:' + order_id)"
    )


def _check_enclosing(transaction: OpenTransaction, recorded_as: str, key: str | None) -> None:
    enclosing = transaction.outer
    while enclosing is not None:
        if (
            enclosing.session is not None
            and enclosing.tenant_id == transaction.tenant_id
            and recorded_as in enclosing.recorded
        ):
            raise OnceError(
                f"once({key!r}) was called in a transaction inside another that has recorded the same and has not "
                "ended: each would wait for the other"
            )
        enclosing = enclosing.outer


def _message_id(execution: Execution) -> str | None:
    """Return the message's id, or its digest where other producers made one that no column takes."""
    message_id = execution.message_id
    if len(message_id) <= MESSAGE_ID_AT_MOST and _is_storable(message_id):
        return message_id or None
    return hashlib.sha256(message_id.encode("utf-8", "surrogatepass")).hexdigest()


def _check(key: object) -> None:
    if not isinstance(key, str):
        raise ValueError(f"key must be a string, not {repr(key)[:200]}")  # noqa: TRY004 - as for what is too long
    if not key:
        raise ValueError("key must not be empty, but it is ''")
    if len(key) > KEY_AT_MOST:
        raise ValueError(f"key must have at most {KEY_AT_MOST} characters, not {len(key)}: {key[:KEY_AT_MOST]!r}…")
    if not _is_storable(key):
        raise ValueError(f"key must hold neither NUL nor lone surrogates, which Postgres cannot store: {key!r}")


def _is_storable(value: str) -> bool:
    try:
        return b"\x00" not in value.encode()
    except UnicodeEncodeError:
        return False
