"""Brings what waits in the outbox into Redis, each message once, in the order of sending.

Redis remembers each message that it took, until its row is removed for certain and whoever may have read the row before
that is too late: each call says until when it holds, on Redis' clock. So the same message may be relayed by several at
once, and by one who died in between and his successor. Whoever relays begins with the first rows that are left, so that
a transaction's messages keep their order.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, Final, Protocol, TypeVar
from uuid import UUID, uuid4

from dramatiq.common import q_name
from dramatiq.errors import ConnectionClosed
from loguru import logger
from sqlalchemy.orm import Session

from db import outbox
from db.deadline import set_deadline
from db.errors import ConfigurationError, DramaturgError, KeyMissing, SealBroken
from db.failed.originals import SEALED, opened
from db.failures import Failure
from db.outbox import Waiting
from db.sealing import Keys
from db.session import operator_transaction, rebind, transaction
from db.tenancy import tenant_context
from middleware import unique
from middleware.errors import MessageExpired
from middleware.fingerprint import fingerprint, normalise
from middleware.lua_scripts import Argument, Scripts
from middleware.message_checks import UNIQUE
from middleware.process_facts import process_name
from middleware.tenant_context import correlation_of
from middleware.text import class_of

#: Messages, and bytes of them, that go to Redis in one call. Redis does nothing else meanwhile.
AT_ONCE, BYTES_AT_ONCE = 500, 4_000_000
#: So many times as much is read from the outbox, and removed, in one transaction, which Postgres syncs to disk.
CALLS: Final = 4
#: Milliseconds after which it is too late to relay what was read.
TOO_LATE: Final = 60_000
#: Seconds for which Redis remembers that it took a message: longer than any row waits; and once its row is removed:
#: much longer than what was read holds.
REMEMBER: Final = 30 * 24 * 3_600
REMEMBER_REMOVED: Final = 600
#: Seconds after which rows of messages that were relayed are removed, many at once.
REMOVE_AFTER: Final = 0.1
#: Seconds between two looks for what others left behind; how old that must be, because those who live relay and remove
#: it themselves; and between two attempts while a server is away.
LOOK_EVERY, GRACE, AGAIN_AFTER = 0.95, 1.0, 1.0
#: Milliseconds for which one process has the outbox to itself, at most, between two of its calls.
TURN: Final = 10_000
#: Seconds to wait at the end of a process for rows to be removed.
REMOVE_WITHIN: Final = 2.0
#: Seconds that a transaction of the relay may take.
WITHIN: Final = 10.0
#: Seconds after which a message that cannot be relayed by this process is none of any other's either, and becomes a
#: failed job; and after which any does, for longer than :data:`REMEMBER` it must not wait.
GIVE_UP_AFTER, KEEP_AT_MOST = 600.0, 7 * 86_400.0
#: Messages that are left out in one pass.
LEAVE_OUT_AT_MOST: Final = 10_000
#: Rows that are known to be relayed and not removed yet, at most; others are found by whoever looks.
TO_REMOVE_AT_MOST: Final = 100_000
#: Seconds that the oldest may wait before it is said; and between two warnings of the same.
LATE, SAY_EVERY = 60.0, 60.0


class UnknownQueue(DramaturgError):
    """Why a message of the outbox became a failed job: no process that relays knows its queue."""


class Withdrawn(DramaturgError):
    """Why a message of the outbox became a failed job: it was being removed, by somebody who did not get to the end."""


class Ready(Protocol):
    """A message that is ready to go to Redis."""

    @property
    def queue(self) -> str: ...
    @property
    def redis_id(self) -> str: ...
    @property
    def data(self) -> bytes: ...


class Sent(Ready, Protocol):
    """A message of a transaction that is committed."""

    @property
    def tenant_id(self) -> UUID | None: ...
    @property
    def row_id(self) -> int: ...
    @property
    def not_after(self) -> int: ...


_T = TypeVar("_T", bound=Ready)
#: Asks whether it is somebody's turn to look, for so many milliseconds; returns Redis' time and 1 or 0.
Ask = Callable[[str, int], list[int]]
#: Of what was relayed: its tenant, its row and its id in Redis.
_Relayed = tuple[UUID | None, int, str]


class Relay:
    """The relay of one process. Its thread begins when there is something to do. Safe to use after a fork.

    Arguments:
      run: The scripts.
      keys: Of ``FAILED_JOB_KEYS``; None where it is not set.
      knows: Tells whether a queue is one that is used here.
      record: Records what cannot be relayed; :func:`db.failed_jobs.end_all`.
      worker_name: Of this process, for such failures; the host's name by default.
    """

    def __init__(
        self,
        run: Scripts,
        *,
        keys: Keys | None = None,
        knows: Callable[[str], bool] = lambda _: True,
        record: Callable[[Sequence[Failure]], object] | None = None,
        worker_name: str | None = None,
    ) -> None:
        self._run = run
        self._keys = keys
        self._knows = knows
        self._record = record
        self._worker_name = worker_name
        self._lock = threading.Lock()
        self._said: dict[str, float] = {}
        self._sees_all: bool | None = None
        #: Redis' clock, less this process' own, in milliseconds.
        self._offset: float | None = None
        self._reset()

    def _reset(self) -> None:
        self._me = str(uuid4())
        self._process = os.getpid()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._relayed: list[_Relayed] = []
        #: The last row of this process that it could not relay, 0 where there is none; and their tenants.
        self._owed_to = 0
        self._owed_of = set[UUID | None]()
        #: Whether what is sent now waits behind that.
        self._behind = False
        self._looks = False
        self._ask: Ask | None = None
        self._stop = False
        self._next_look = self._next_try = self._remove_at = 0.0

    # --- Senders ------------------------------------------------------------------------------------

    def get_ready(self) -> None:
        """Find out what Redis' clock says, once; where it cannot be asked now, what is sent waits for the thread."""
        if self._offset is None and not self._behind:
            try:
                self._call("relay", 0, 0)
            except ConnectionClosed as e:
                self._behind = True
                self._say(f"Redis' clock cannot be asked: {e}")

    def not_after(self) -> int:
        """Return when it is too late for what is about to be written, on Redis' clock; 0 where that is not known."""
        return 0 if self._offset is None else int(time.monotonic() * 1_000 + self._offset) + TOO_LATE

    def send(self, sent: Sequence[Sent]) -> None:
        """Relay messages at once, unless others of this process wait for Redis: those come first."""
        if self._behind:
            self.owe(sent)
            return
        done = 0
        try:
            for chunk in _chunks(sent):
                if not self._put(min(one.not_after for one in chunk), chunk):
                    break
                done += len(chunk)
                self._note_relayed([(one.tenant_id, one.row_id, one.redis_id) for one in chunk])
        except ConnectionClosed as e:
            self._say(f"what was sent in a transaction waits in the outbox: {e}")
        if done < len(sent):
            self.owe(sent[done:])

    def owe(self, sent: Sequence[Sent]) -> None:
        """Let the thread relay messages, with all that waits of their tenants."""
        self._check_process()
        with self._lock:
            self._behind = True
            self._owed_to = max(self._owed_to, *(one.row_id for one in sent))
            self._owed_of.update(one.tenant_id for one in sent)
        self._start()

    def _put(self, not_after: int, sent: Sequence[Ready]) -> list[int]:
        """Put messages on their queues; return for each whether it is, or was, there; nothing where it is too late."""
        parts: list[Argument] = []
        if any(_MAY_BE_UNIQUE in one.data for one in sent):
            for one in sent:
                parts += (*_uniqueness(one.data), one.queue, one.redis_id, one.data)
            said = self._run("enqueue_unique", f"{unique.KEEP} {not_after} {REMEMBER}", *parts)
            for n, (code, other) in enumerate(zip(said[::3], said[1::3], strict=True)):
                if code == 0:
                    logger.info(
                        "message {} for queue {} is left out: message {} is there already",
                        parts[6 * n + 1],
                        q_name(sent[n].queue),
                        other.decode(),
                    )
            return [int(code >= 0) for code in said[::3]]
        for one in sent:
            parts += (one.queue, one.redis_id, one.data)
        return self._call("relay", not_after, REMEMBER, *parts)

    def _call(self, script: str, *arguments: Argument) -> list[int]:
        """Run a script whose answer begins with Redis' time, and return the rest."""
        said: list[int]
        now, *said = self._run(script, *arguments)
        self._note_time(now)
        return said

    def _note_time(self, now: int) -> None:
        self._offset = now - time.monotonic() * 1_000

    # --- The thread ---------------------------------------------------------------------------------

    def look_after_others(self, ask: Ask | None = None) -> None:
        """Look every second for what others left behind, from now on; in a process that stays.

        Arguments:
          ask: Asks whose turn it is: :meth:`middleware.lossless_broker.LosslessBroker.ask_turn`. By default we do.
        """
        self._check_process()
        self._ask = ask
        self._looks, self._stop = True, False
        self._start()

    def stop(self) -> None:
        """Look no more, and do what is left at once."""
        self._looks, self._stop = False, True
        self._wake.set()

    def close(self) -> None:
        """Do what is left at once, and wait until that is done, but not for long: others find what is not."""
        thread = self._thread
        if thread is not None and self._process == os.getpid():
            self.stop()
            thread.join(REMOVE_WITHIN)

    def _check_process(self) -> None:
        if self._process != os.getpid():
            # What there was to do before the fork the other process does. Its threads may have held the lock.
            self._lock = threading.Lock()
            self._reset()

    def _start(self) -> None:
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._stop = False
                self._thread = threading.Thread(target=self._keep, name="outbox", daemon=True)
                self._thread.start()
        self._wake.set()

    def _note_relayed(self, relayed: Sequence[_Relayed]) -> None:
        self._check_process()
        with self._lock:
            first = not self._relayed
            if len(self._relayed) < TO_REMOVE_AT_MOST:
                self._relayed += relayed
        if first:
            self._remove_at = time.monotonic() + REMOVE_AFTER
            self._start()

    def _keep(self) -> None:
        while True:
            self._wake.wait(self._time_to_wait())
            self._wake.clear()
            stop = self._stop
            try:
                self._work(at_once=stop)
            except ConnectionClosed as e:
                self._put_off(f"the outbox waits for Redis: {e}")
            except Exception as e:  # noqa: BLE001 - Postgres is away, or behind: this thread must live whatever it is
                # Not its text: Postgres quotes what it does not take.
                state = getattr(getattr(e, "orig", None), "sqlstate", None)
                why = str(e) if isinstance(e, ConfigurationError) else type(e).__name__
                self._put_off(f"the outbox waits: {why}{f', SQLSTATE {state}' if state else ''}")
            if stop:
                return

    def _time_to_wait(self) -> float | None:
        due = [
            *([self._remove_at] if self._relayed else []),
            *([self._next_try] if self._owed_to else []),
            *([self._next_look] if self._looks else []),
        ]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _put_off(self, why: str) -> None:
        self._remove_at = self._next_try = self._next_look = time.monotonic() + AGAIN_AFTER
        self._say(why)

    def _work(self, *, at_once: bool) -> None:
        now = time.monotonic()
        if self._relayed and (at_once or now >= self._remove_at):
            self._remove_relayed()
        if self._owed_to and not at_once and now >= self._next_try:
            self._settle()
        if self._looks and now >= self._next_look:
            self._next_look = now + LOOK_EVERY
            if self._can_see_all():
                self.relay_all(grace=GRACE, quiet=int(LOOK_EVERY * 900))

    def _remove_relayed(self) -> None:
        with self._lock:
            relayed, self._relayed = self._relayed, []
        try:
            self._remove(relayed)
        except BaseException:
            with self._lock:
                self._relayed = relayed + self._relayed
            raise

    def _remove(self, relayed: Sequence[_Relayed]) -> None:
        """Remove rows of messages that Redis has, and let it forget them soon."""
        if self._can_see_all():
            with _in(operator_transaction) as session:
                outbox.remove(session, [row_id for _, row_id, _ in relayed])
        else:
            by_tenant: dict[UUID | None, list[int]] = {}
            for tenant_id, row_id, _ in relayed:
                by_tenant.setdefault(tenant_id, []).append(row_id)
            with tenant_context(next(iter(by_tenant))), _in(transaction) as session:
                for tenant_id, row_ids in by_tenant.items():
                    with tenant_context(tenant_id):
                        rebind(session)
                    outbox.remove(session, row_ids)
                    if outbox.has_up_to(session, max(row_ids)):
                        self._take_over(tenant_id, max(row_ids))
        self._forget([redis_id for _, _, redis_id in relayed])

    def _take_over(self, tenant_id: UUID | None, last: int) -> None:
        """Owe what is left of a tenant, where nobody who sees all tenants' looks after it: its sender may be dead."""
        with self._lock:
            self._owed_to = max(self._owed_to, last)
            self._owed_of.add(tenant_id)
        # It may be alive as well.
        self._next_try = max(self._next_try, time.monotonic() + GRACE)

    def _forget(self, redis_ids: Sequence[str]) -> None:
        # It is for Redis' memory alone.
        with suppress(ConnectionClosed):
            self._run("remember_replays", REMEMBER_REMOVED, *redis_ids)

    def _can_see_all(self) -> bool:
        if self._sees_all is None:
            with _in(operator_transaction) as session:
                self._sees_all = outbox.sees_all(session)
        return self._sees_all

    def _settle(self) -> None:
        """Relay what this process owes, with all that waits, where it may see that."""
        with self._lock:
            owed_to, owed_of = self._owed_to, set(self._owed_of)
        if self._can_see_all():
            if self.relay_all(grace=0):
                settled = not self._stop
            else:
                # It is another's turn, who relays ours, too.
                with _in(operator_transaction) as session:
                    settled = not outbox.has_up_to(session, owed_to)
        else:
            settled = True
            for tenant_id in owed_of:
                self._ask_time()
                with tenant_context(tenant_id):
                    settled &= self._relay(transaction, grace=0, may_go_on=self._ask_time)[0]
        if not settled:
            self._next_try = time.monotonic() + 0.1
            return
        with self._lock:
            self._behind = False
            if self._owed_to == owed_to:
                self._owed_to = 0
                self._owed_of.clear()

    def _ask_time(self) -> bool:
        self._call("relay", 0, 0)
        return True

    # --- Relaying -----------------------------------------------------------------------------------

    def relay_all(self, *, grace: float, quiet: int = 0) -> bool:
        """Relay what waits of all tenants; tell whether it was this process' turn.

        Arguments:
          grace: Seconds; what is younger is left to those who sent it.
          quiet: Milliseconds for which no process looks again of its own accord.

        Raises:
          ConnectionClosed: For any error of Redis. What was read stays.
          sqlalchemy.exc.SQLAlchemyError: For any error of Postgres.
        """
        if not self._turn(quiet):
            return False
        found = True
        try:
            _, found = self._relay(operator_transaction, grace=grace, may_go_on=self._turn)
        finally:
            # A turn that was quiet ends by itself, no later than somebody looks again.
            if found or not quiet:
                with suppress(ConnectionClosed):
                    self._call("relay_turn", self._me, 0, 0)
        return True

    def _turn(self, quiet: int = 0) -> bool:
        if quiet and self._ask is not None:
            now, turn = self._ask(self._me, quiet)
            self._note_time(now)
            return turn == 1
        return self._call("relay_turn", self._me, quiet or TURN, quiet) == [1]

    def _relay(self, begin: Callable[[], Any], *, grace: float, may_go_on: Callable[[], bool]) -> tuple[bool, bool]:
        """Relay what waits, from the first to the last; tell whether it got there, and whether there was anything.

        Arguments:
          begin: Transactions that see it.
          may_go_on: Asked before each step but the first; asks Redis, and so for its time, as was just done.
        """
        left_out = set[int]()
        done: list[Waiting] = []
        first = True
        while True:
            goes_on = not self._stop and len(left_out) < LEAVE_OUT_AT_MOST and (first or may_go_on())
            # Before they are read: whoever else removes them, Redis remembers them for longer than this holds.
            not_after = self.not_after()
            with _in(begin) as session:
                if done:
                    outbox.remove(session, [one.id for one in done])
                found = self._read_some(session, grace, left_out) if goes_on else []
            if done:
                self._forget([one.redis_id for one in done])
            if not found:
                return goes_on, not first
            first = False
            self._say_if_late(found[0])
            done = self._pass_on(found, not_after)
            left_out.update({one.id for one in found} - {one.id for one in done})

    def _read_some(self, session: Session, grace: float, but: Collection[int]) -> list[Waiting]:
        return outbox.waiting(session, grace=grace, but=but, limit=CALLS * AT_ONCE, bytes_=CALLS * BYTES_AT_ONCE)

    def _say_if_late(self, first: Waiting) -> None:
        if first.age > LATE:
            said = f"a message has waited in the outbox for {first.age:.0f} seconds, for queue {q_name(first.queue)}"
            self._say(said, "late", "CRITICAL")

    def _pass_on(self, found: Sequence[Waiting], not_after: int) -> list[Waiting]:
        """Put messages into Redis, and make failed jobs of those that cannot be; return those that are either."""
        ready: list[_Read] = []
        problems: list[tuple[Waiting, DramaturgError]] = []
        for one in found:
            data = self._read(one)
            if isinstance(data, bytes):
                ready.append(_Read(one, data))
            else:
                problems.append((one, data))
        said: list[int] = []
        for chunk in _chunks(ready):
            answer = self._put(not_after, chunk)
            if not answer:
                break
            said += answer
        done = [one.row for one, is_there in zip(ready, said, strict=False) if is_there]
        problems += [
            (one.row, Withdrawn("it was being removed"))
            for one, is_there in zip(ready, said, strict=False)
            if not is_there
        ]
        return done + [one for one, problem in problems if self._end(one, problem)]

    def _read(self, one: Waiting) -> bytes | DramaturgError:
        """Return a message as it was encoded, or why it cannot be relayed."""
        if one.age > KEEP_AT_MOST:
            return MessageExpired(f"it waited in the outbox for more than {KEEP_AT_MOST / 86_400:.0f} days")
        if not self._knows(q_name(one.queue)):
            return UnknownQueue(f"queue {q_name(one.queue)!r} is not declared in the processes that relay the outbox")
        try:
            return opened(one.message, self._keys)
        except (KeyMissing, SealBroken) as e:
            return e

    def _end(self, one: Waiting, problem: DramaturgError) -> bool:
        """Make a failed job of a message; tell whether it is one, or was in Redis before."""
        if one.age < GIVE_UP_AFTER and not isinstance(problem, Withdrawn | MessageExpired):
            # Another process may know the key, or the queue.
            self._say(f"a message of the outbox is left to other processes: {problem}")
            return False
        if self._record is None:
            return False
        (withdrawn,) = self._run("withdraw_replays", REMEMBER, one.redis_id)
        if withdrawn:
            try:
                self._record([self._failure(one, problem)])
            except Exception as e:  # noqa: BLE001 - it waits on, and the others go on
                self._say(f"a message of the outbox can be neither relayed nor recorded: {type(e).__name__}")
                return False
            logger.error("message {} of the outbox is a failed job: {}", one.message_id, problem)
        return True

    def _failure(self, one: Waiting, problem: DramaturgError) -> Failure:
        original, key = one.message, None
        if original.startswith(SEALED):
            name, _, original = original[len(SEALED) :].partition(b":")
            key = name.decode("ascii", "replace")
        else:
            original = opened(original, None)
            if self._keys is not None:
                original, key = self._keys.seal(original)
        return Failure(
            delivery_id=one.redis_id,
            task_id=one.message_id,
            task_name=one.actor,
            queue=q_name(one.queue)[:100],
            worker=process_name(self._worker_name),
            task_args=None,
            task_kwargs=None,
            tenant_id=one.tenant_id,
            error_type="expired" if isinstance(problem, MessageExpired) else "configuration_error",
            exception_class=class_of(problem),
            error_message=f"the message was sent inside a transaction and never reached Redis: {problem}",
            traceback=None,
            retry_count=0,
            last_retry_at=None,
            correlation_id=correlation_of({}, one.message_id),
            failed_at=datetime.now(UTC),
            original=original,
            original_key=key,
            fingerprint=fingerprint(one.actor, problem),
            title=normalise(str(problem)),
        )

    def _say(self, what: str, kind: str = "", level: str = "WARNING") -> None:
        """Warn of what lasts, once in a while."""
        now = time.monotonic()
        if now - self._said.get(kind or what, float("-inf")) >= SAY_EVERY:
            if len(self._said) > 1_000:
                self._said.clear()
            self._said[kind or what] = now
            logger.log(level, "{}", what)


class _Read:
    """A row, and what is to go to Redis of it."""

    __slots__ = ("data", "queue", "redis_id", "row")

    def __init__(self, row: Waiting, data: bytes) -> None:
        self.row = row
        self.queue, self.redis_id, self.data = row.queue, row.redis_id, data


@contextmanager
def _in(begin: Callable[[], Any]) -> Iterator[Session]:
    set_deadline(WITHIN)
    try:
        with begin() as session:
            yield session
    finally:
        set_deadline(None)


#: What stands in every message that is unique.
_MAY_BE_UNIQUE: Final = UNIQUE.encode()


def _uniqueness(data: bytes) -> tuple[str, str, int]:
    """Return what makes a message unique, if anything does, its message id, and when it is due."""
    try:
        message = json.loads(data)
        options = message["options"]
        return unique.policy_of(options), str(message["message_id"]), int(options.get("eta") or 0)
    except (ValueError, KeyError, TypeError, AttributeError):
        # What is no message is found out where it is fetched.
        return "", "", 0


def _chunks(sent: Sequence[_T]) -> Iterator[list[_T]]:
    chunk: list[_T] = []
    size = 0
    for one in sent:
        if chunk and (len(chunk) == AT_ONCE or size + len(one.data) > BYTES_AT_ONCE):
            yield chunk
            chunk, size = [], 0
        chunk.append(one)
        size += len(one.data)
    if chunk:
        yield chunk
