"""Loads attribution events from CSV."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO
from uuid import UUID, uuid4

from psycopg import Cursor, sql
from sqlalchemy import text
from sqlalchemy.orm import Session

from db.models import AttributionEvent
from worker.arguments import shown
from worker.recompute import MAX_CENTS, utc
from worker.table_shapes import check_tables
from worker.tenants import naming_tenant, no_tenant

COLUMNS = ("event_id", "event_type", "visitor_id", "channel", "revenue_cents", "occurred_at")

#: Characters that each text column holds.
LENGTHS = {"event_id": 255, "visitor_id": 255, "channel": 100}

#: Bytes of a line at most, so that a file without line ends does not fill memory.
LINE_LENGTH = 1_048_576

#: Rows between two calls of ``progress``.
PROGRESS_ROWS = 10_000

_DIGITS = re.compile(r"-?[0-9]+", re.ASCII)


class EventFileError(ValueError):
    """Raised when a file of events cannot be loaded; names file, line and, where there is one, column and value."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a load did: ``rows`` in the file are ``inserted`` or ``duplicates`` of an event id already there."""

    rows: int
    inserted: int
    duplicates: int


def load_events(
    session: Session, tenant_id: UUID, path: Path, *, progress: Callable[[int], None] | None = None
) -> Loaded:
    """Load a tenant's events from a CSV file, all of them or none. Memory does not grow with the file.

    UTF-8, with or without a byte order mark, with a header that holds exactly these columns in any order:
    ``event_id``, ``event_type`` (``touch`` or ``conversion``), ``visitor_id``, ``channel`` (of a touch),
    ``revenue_cents`` (of a conversion, a whole number, not negative), ``occurred_at`` (ISO 8601; a time without an
    offset is UTC). Empty lines are skipped. Of events with the same id the first is kept: the one already there, else
    the first in the file.

    Arguments:
      session: A :func:`db.session.transaction` bound to ``tenant_id``. The caller commits.
      tenant_id: Whose events.
      path: The file.
      progress: Called with the number of rows read so far, every 10,000 rows and at the end.

    Raises:
      EventFileError: When the file is wrong. Nothing is loaded, and the transaction is of no further use.
      ValueError: When there is no such tenant, or the session is bound to another.
      ConfigurationError: When ``attribution_events`` is missing or has another shape than ours.
      OSError: When the file cannot be read.
    """
    with path.open("rb") as file:
        check_tables(session, (AttributionEvent,))
        _require_tenant(session, tenant_id)
        connection: Any = session.connection().connection.driver_connection
        with connection.cursor() as cursor:
            return _load(cursor, tenant_id, _Rows(path.name, file), progress)


def _load(cursor: Cursor[Any], tenant_id: UUID, rows: _Rows, progress: Callable[[int], None] | None) -> Loaded:
    # COPY is refused where row-level security applies, so it goes to a table of this transaction's own.
    staging = sql.Identifier(f"attribution_events_{uuid4().hex}")
    cursor.execute(
        sql.SQL(
            "CREATE TEMPORARY TABLE {} (event_id text, event_type text, visitor_id text, channel text,"
            " revenue_cents bigint, occurred_at timestamptz) ON COMMIT DROP"
        ).format(staging)
    )
    columns = sql.SQL(", ").join(map(sql.Identifier, COLUMNS))
    count = 0
    with cursor.copy(sql.SQL("COPY {} ({}) FROM STDIN").format(staging, columns)) as copy:
        for row in rows:
            copy.write_row(row)
            count += 1
            if progress is not None and count % PROGRESS_ROWS == 0:
                progress(count)
    if progress is not None and count % PROGRESS_ROWS:
        progress(count)
    # Two loads with the same events in another order would wait for each other's rows: a deadlock.
    cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [f"dramaturg.load_events:{tenant_id}"])
    with naming_tenant(tenant_id):
        cursor.execute(
            sql.SQL(
                "INSERT INTO attribution_events (tenant_id, {columns}) SELECT %s, {columns} FROM {staging}"
                " ON CONFLICT DO NOTHING"
            ).format(columns=columns, staging=staging),
            [tenant_id],
        )
    return Loaded(count, cursor.rowcount, count - cursor.rowcount)


def _require_tenant(session: Session, tenant_id: UUID) -> None:
    """Find out that there is no such tenant before a large file is read, where this role may read ``tenants``."""
    may_read = session.execute(text("SELECT has_column_privilege(to_regclass('tenants'), 'id', 'SELECT')")).scalar()
    if (
        may_read
        and not session.execute(text("SELECT 1 FROM tenants WHERE id = :tenant_id"), {"tenant_id": tenant_id}).scalar()
    ):
        raise no_tenant(tenant_id)


class _Rows:
    """The events of a file, in the order of ``COLUMNS``, as COPY takes them."""

    def __init__(self, name: str, file: BinaryIO) -> None:
        self._name = name
        self._file = file
        #: The first physical line of the row at hand.
        self._line = 1

    def __iter__(self) -> Iterator[list[str | None]]:
        reader = csv.reader(self._lines(), strict=True)
        header = self._next(reader)
        if header is None:
            raise self._error(f"the file is empty; it must begin with the header {','.join(COLUMNS)}")
        order = self._order(header)
        while True:
            self._line = reader.line_num + 1
            fields = self._next(reader)
            if fields is None:
                return
            if not fields:
                continue
            if len(fields) != len(COLUMNS):
                raise self._error(f"{len(fields)} fields, where the header has {len(COLUMNS)}")
            yield self._checked(*[fields[index] for index in order])

    def _lines(self) -> Iterator[str]:
        # Lines are cut as bytes, which in UTF-8 cuts no character, so that a bad one is known by its line.
        number = 0
        while raw := self._file.readline(LINE_LENGTH + 1):
            number += 1
            if len(raw) > LINE_LENGTH:
                raise self._error(f"longer than {LINE_LENGTH} bytes", line=number)
            try:
                yield raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as e:
                raise self._error(f"not UTF-8: {e.reason} at byte {e.start + 1} of the line", line=number) from None

    def _next(self, reader: Iterator[list[str]]) -> list[str] | None:
        try:
            return next(reader, None)
        except csv.Error as e:
            raise self._error(f"not CSV: {e}") from None

    def _order(self, header: list[str]) -> list[int]:
        """Return where in a row each of ``COLUMNS`` stands."""
        for column in header:
            if column not in COLUMNS:
                raise self._error(f"the header has an unknown column {shown(column)}; known are {', '.join(COLUMNS)}")
            if header.count(column) > 1:
                raise self._error(f"the header has the column {column} more than once")
        for column in COLUMNS:
            if column not in header:
                raise self._error(f"the header has no column {column}")
        return [header.index(column) for column in COLUMNS]

    def _checked(
        self, event_id: str, event_type: str, visitor_id: str, channel: str, revenue_cents: str, occurred_at: str
    ) -> list[str | None]:
        self._check_text("event_id", event_id)
        self._check_text("visitor_id", visitor_id)
        cents: str | None = None
        if event_type == "touch":
            self._check_text("channel", channel)
            if revenue_cents:
                raise self._error(f"{shown(revenue_cents)}, but a touch has no revenue", "revenue_cents")
        elif event_type == "conversion":
            cents = self._cents(revenue_cents)
            if channel:
                raise self._error(f"{shown(channel)}, but a conversion has no channel", "channel")
        else:
            raise self._error(f"{shown(event_type)} is neither touch nor conversion", "event_type")
        return [event_id, event_type, visitor_id, channel or None, cents, self._time(occurred_at)]

    def _check_text(self, column: str, value: str) -> None:
        if not value.strip():
            raise self._error("empty", column)
        if len(value) > LENGTHS[column]:
            raise self._error(
                f"{shown(value)} has {len(value)} characters, at most {LENGTHS[column]} are allowed", column
            )
        if "\0" in value:
            raise self._error(f"{shown(value)} holds a NUL character, which Postgres cannot store", column)

    def _cents(self, value: str) -> str:
        if not value:
            raise self._error("empty", "revenue_cents")
        if not _DIGITS.fullmatch(value):
            raise self._error(f"{shown(value)} is not a whole number of cents", "revenue_cents")
        digits = value.lstrip("-").lstrip("0")
        if digits and value.startswith("-"):
            raise self._error(f"{shown(value)} is negative", "revenue_cents")
        # By length first: Python refuses to read numbers of thousands of digits.
        if len(digits) > len(str(MAX_CENTS)) or int(digits or "0") > MAX_CENTS:
            raise self._error(f"{shown(value)} is more than {MAX_CENTS}", "revenue_cents")
        return digits or "0"

    def _time(self, value: str) -> str:
        if not value:
            raise self._error("empty", "occurred_at")
        try:
            moment = datetime.fromisoformat(value)
            if moment.tzinfo is not UTC:
                moment = utc(moment)
        except ValueError:
            raise self._error(f"{shown(value)} is not an ISO 8601 timestamp", "occurred_at") from None
        except OverflowError:
            raise self._error(f"{shown(value)} is out of range in UTC", "occurred_at") from None
        return moment.isoformat()

    def _error(self, what: str, column: str | None = None, *, line: int | None = None) -> EventFileError:
        where = f"{self._name}, line {line or self._line}"
        return EventFileError(f"{where}, column {column}: {what}" if column else f"{where}: {what}")
