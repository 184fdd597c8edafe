from __future__ import annotations

import csv
from pathlib import Path
from threading import Barrier, Thread
from uuid import UUID, uuid4

import psycopg
import pytest

from db.errors import ConfigurationError
from db.session import operator_transaction, transaction
from db.tenancy import tenant_context
from tests.servers import Database
from worker.events import EventFileError, Loaded, load_events
from worker.tenants import add_tenant

HEADER = "event_id,event_type,visitor_id,channel,revenue_cents,occurred_at\n"
TOUCH = "t1,touch,v1,email,,2025-01-01T00:00:00Z\n"
SALE = "c1,conversion,v1,,1250,2025-01-02\n"


@pytest.fixture
def tenant(database: Database) -> UUID:
    """A tenant."""
    with operator_transaction() as session:
        return add_tenant(session, "Alpha")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where to write a file."""
    return tmp_path / "events.csv"


def load(tenant: UUID, file: Path) -> Loaded:
    with tenant_context(tenant), transaction() as session:
        return load_events(session, tenant, file)


def rows(database: Database) -> list[tuple[object, ...]]:
    with psycopg.connect(database.admin_url) as admin:
        return admin.execute(
            """
            SELECT event_id, event_type, visitor_id, channel, revenue_cents, to_char(occurred_at AT TIME ZONE 'UTC',
                   'YYYY-MM-DD"T"HH24:MI:SS.US') FROM attribution_events ORDER BY event_id
            """
        ).fetchall()


def test_a_file_is_loaded(database: Database, tenant: UUID, file: Path) -> None:
    file.write_text(
        HEADER + TOUCH + "\n" + SALE + 'q,touch,"a ""b""\nc,\t\\N",söcial,,2025-01-01T00:00:00.123456+05:30',
        encoding="utf-8-sig",
    )
    assert load(tenant, file) == Loaded(3, 3, 0)
    assert rows(database) == [
        ("c1", "conversion", "v1", None, 1250, "2025-01-02T00:00:00.000000"),
        ("q", "touch", 'a "b"\nc,\t\\N', "söcial", None, "2024-12-31T18:30:00.123456"),
        ("t1", "touch", "v1", "email", None, "2025-01-01T00:00:00.000000"),
    ]


def test_columns_may_come_in_any_order(database: Database, tenant: UUID, file: Path) -> None:
    file.write_bytes(
        b"occurred_at,channel,event_id,revenue_cents,visitor_id,event_type\r\n2025-01-01,ads,t,,v,touch\r\n"
    )
    assert load(tenant, file) == Loaded(1, 1, 0)
    assert rows(database) == [("t", "touch", "v", "ads", None, "2025-01-01T00:00:00.000000")]


def test_duplicates_are_counted_and_the_first_is_kept(database: Database, tenant: UUID, file: Path) -> None:
    file.write_text(HEADER + TOUCH + SALE + SALE.replace("1250", "9"))
    assert load(tenant, file) == Loaded(3, 2, 1)
    assert load(tenant, file) == Loaded(3, 0, 3)
    assert [row[4] for row in rows(database)] == [1250, None]


def test_two_tenants_may_use_the_same_ids(database: Database, tenant: UUID, file: Path) -> None:
    with operator_transaction() as session:
        other = add_tenant(session, "Beta")
    file.write_text(HEADER + TOUCH)
    assert load(tenant, file) == load(other, file) == Loaded(1, 1, 0)


def test_a_header_alone_is_an_empty_load(tenant: UUID, file: Path) -> None:
    file.write_text(HEADER)
    assert load(tenant, file) == Loaded(0, 0, 0)


def test_progress_is_reported(tenant: UUID, file: Path) -> None:
    with file.open("w", newline="") as out:
        out.write(HEADER)
        csv.writer(out).writerows([f"t{i}", "touch", "v", "ads", "", "2025-01-01"] for i in range(20_001))
    seen: list[int] = []
    with tenant_context(tenant), transaction() as session:
        assert load_events(session, tenant, file, progress=seen.append).inserted == 20_001
    assert seen == [10_000, 20_000, 20_001]


def test_cents_fill_a_bigint(database: Database, tenant: UUID, file: Path) -> None:
    file.write_text(HEADER + f"c,conversion,v,,{2**63 - 1},2025-01-01\nd,conversion,v,,-000,2025-01-01\n")
    assert load(tenant, file).inserted == 2
    assert [row[4] for row in rows(database)] == [2**63 - 1, 0]


LONG = "x" * 256


#: What a file holds, and what is said about it.
BAD: list[tuple[str | bytes, str]] = [
    ("", "line 1: the file is empty"),
    (HEADER.replace("channel", "kanal"), "line 1: the header has an unknown column 'kanal'"),
    (HEADER.replace(",occurred_at", ""), "line 1: the header has no column occurred_at"),
    (HEADER.replace("channel", "event_id"), "line 1: the header has the column event_id more than once"),
    ("\n" + HEADER, "line 1: the header has no column event_id"),
    (HEADER + TOUCH + "a,b\n", "line 3: 2 fields, where the header has 6"),
    (HEADER + TOUCH.replace("t1", ""), "line 2, column event_id: empty"),
    (HEADER + TOUCH.replace("v1", " "), "line 2, column visitor_id: empty"),
    (HEADER + TOUCH.replace("email", ""), "line 2, column channel: empty"),
    (HEADER + SALE.replace("1250", ""), "line 2, column revenue_cents: empty"),
    (HEADER + SALE.replace("2025-01-02", ""), "line 2, column occurred_at: empty"),
    (
        HEADER + TOUCH.replace("t1", LONG),
        f"line 2, column event_id: '{'x' * 80}'... has 256 characters, at most 255",
    ),
    (HEADER + TOUCH.replace("v1", LONG), "line 2, column visitor_id: "),
    (HEADER + TOUCH.replace("email", LONG), "line 2, column channel: "),
    (
        HEADER + TOUCH.replace("touch", "click"),
        "line 2, column event_type: 'click' is neither touch nor conversion",
    ),
    (
        HEADER + SALE.replace("1250", "12.50"),
        "line 2, column revenue_cents: '12.50' is not a whole number of cents",
    ),
    (HEADER + SALE.replace("1250", "1_0"), "line 2, column revenue_cents: '1_0' is not a whole number"),
    (HEADER + SALE.replace("1250", "\u0661"), "line 2, column revenue_cents: '\u0661' is not a whole number"),
    (HEADER + SALE.replace("1250", "-1"), "line 2, column revenue_cents: '-1' is negative"),
    (
        HEADER + SALE.replace("1250", str(2**63)),
        f"line 2, column revenue_cents: '{2**63}' is more than {2**63 - 1}",
    ),
    (HEADER + SALE.replace("1250", "9" * 9999), "line 2, column revenue_cents: "),
    (HEADER + SALE.replace("2025-01-02", "2025-02-30"), "column occurred_at: '2025-02-30' is not an ISO 8601"),
    (HEADER + SALE.replace("2025-01-02", "0001-01-01T00:00+01:00"), "occurred_at: '0001-01-01T00:00+01:00' is out"),
    (HEADER + TOUCH.replace(",,", ",5,"), "line 2, column revenue_cents: '5', but a touch has no revenue"),
    (HEADER + SALE.replace(",,", ",ads,"), "line 2, column channel: 'ads', but a conversion has no channel"),
    (HEADER + TOUCH.replace("v1", "v\0"), r"line 2, column visitor_id: 'v\x00' holds a NUL"),
    ((HEADER + TOUCH).encode() + b"\xff,", "line 3: not UTF-8: invalid start byte at byte 1"),
    (HEADER.encode("utf-16"), "line 1: not UTF-8"),
    (HEADER + '"a\nb",touch,v,x,,2025-01-01\n"c\nd",bad,v,x,,2025-01-01\n', "line 4, column event_type: 'bad'"),
    (HEADER + TOUCH + '"open\nfor ever', "line 3: not CSV: unexpected end of data"),
    (HEADER + TOUCH.replace("v1", "x" * 200_000), "line 2: not CSV: field larger than field limit"),
    (HEADER + "x" * 1_048_577, "line 2: longer than 1048576 bytes"),
    (HEADER + 't,touch,"a"b,x,,2025-01-01', "line 2: not CSV: "),
]


def test_a_bad_row_is_named_and_nothing_is_loaded(database: Database, tenant: UUID, file: Path) -> None:
    # One database for all of them: making one takes longer than a case.
    for content, message in BAD:
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        with pytest.raises(EventFileError) as caught:
            load(tenant, file)
        assert message in str(caught.value)
        assert str(caught.value).startswith("events.csv, line ")
        assert len(str(caught.value)) < 300
    assert rows(database) == []


def test_good_rows_before_a_bad_one_are_not_loaded(database: Database, tenant: UUID, file: Path) -> None:
    file.write_text(HEADER + TOUCH * 5 + SALE.replace("1250", "12.50"))
    with pytest.raises(EventFileError, match=r"^events\.csv, line 7, column revenue_cents: '12\.50' is not a whole"):
        load(tenant, file)
    assert rows(database) == []


def test_an_unknown_tenant_is_named(tenant: UUID, file: Path) -> None:
    nobody = uuid4()
    file.write_text(HEADER + TOUCH)
    with pytest.raises(ValueError, match=rf"^tenant_id: no tenant {nobody}$"):
        load(nobody, file)
    # The session is bound to another tenant than the one that is asked for.
    with operator_transaction() as session:
        other = add_tenant(session, "Beta")
    with (
        pytest.raises(ValueError, match=rf"^tenant_id: no tenant {other}$"),
        tenant_context(tenant),
        transaction() as session,
    ):
        load_events(session, other, file)


def test_an_unknown_tenant_is_named_where_tenants_cannot_be_read(database: Database, file: Path) -> None:
    with psycopg.connect(database.admin_url) as admin:
        admin.execute("REVOKE SELECT ON tenants FROM app_user")
    nobody = uuid4()
    file.write_text(HEADER + TOUCH)
    with pytest.raises(ValueError, match=rf"^tenant_id: no tenant {nobody}$"):
        load(nobody, file)


def test_a_missing_file_is_an_os_error(tenant: UUID, file: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load(tenant, file)


def test_a_foreign_table_is_named(database: Database, tenant: UUID, file: Path) -> None:
    with psycopg.connect(database.owner_url) as owner:
        owner.execute("ALTER TABLE attribution_events RENAME visitor_id TO person")
    file.write_text(HEADER + TOUCH)
    with pytest.raises(ConfigurationError, match=r"table attribution_events .* no column visitor_id"):
        load(tenant, file)


def test_two_loads_of_the_same_events_at_once(database: Database, tenant: UUID, tmp_path: Path) -> None:
    lines = [TOUCH.replace("t1", f"t{i}") for i in range(2000)]
    files = [tmp_path / "a.csv", tmp_path / "b.csv"]
    files[0].write_text(HEADER + "".join(lines))
    files[1].write_text(HEADER + "".join(reversed(lines)))
    barrier, results = Barrier(2), list[Loaded]()

    def run(file: Path) -> None:
        barrier.wait(30)
        results.append(load(tenant, file))

    threads = [Thread(target=run, args=[file]) for file in files]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(result.inserted for result in results) == [0, 2000]
    assert len(rows(database)) == 2000
