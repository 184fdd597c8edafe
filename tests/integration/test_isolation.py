"""What a tenant can see and change in every table of ours, tried as the role that workers have, and as the owner.

The owner is tried, too, because it holds every right: where the worker role is refused for want of a right, that says
nothing of the policies. They bind the owner because row-level security is forced.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, Final
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import tuple_row
from psycopg.types.json import Jsonb

from db import session
from db.models import Base
from db.session import operator_transaction, transaction
from db.tenancy import tenant_context
from tests.servers import OPERATOR, OWNER, WORKER, Cluster, Database

A: Final = UUID("aaaaaaaa-0000-4000-8000-000000000001")
B: Final = UUID("bbbbbbbb-0000-4000-8000-000000000002")

INSUFFICIENT_PRIVILEGE = "42501"
NOT_SUPPORTED = "0A000"
INVALID_TEXT = "22P02"
POLICY = "row-level security policy"

NOW = datetime(2025, 1, 1, tzinfo=UTC)

Row = dict[str, Any]


def failed_job(tenant: UUID | None, n: int) -> Row:
    return {
        "id": UUID(int=n),
        "task_id": f"task-{n}",
        "task_name": "worker.llm.summarise",
        "task_args": Jsonb([n]),
        "tenant_id": tenant,
        "error_type": "unknown",
        "exception_class": "ValueError",
        "error_message": "no",
    }


def delivery(tenant: UUID | None, n: int) -> Row:
    return {"delivery_id": f"delivery-{n}", "failed_job_id": UUID(int=n), "tenant_id": tenant}


def original(tenant: UUID | None, n: int) -> Row:
    return {"failed_job_id": UUID(int=n), "tenant_id": tenant, "original": b"\x00{"}


def details(tenant: UUID | None, n: int) -> Row:
    return {"failed_job_id": UUID(int=n), "tenant_id": tenant, "status": "pending", "failed_at": NOW}


def group(tenant: UUID | None, n: int) -> Row:
    return {
        "id": UUID(int=n),
        "tenant_id": tenant,
        "fingerprint": str(n),
        "task_name": "worker.llm.summarise",
        "error_type": "unknown",
        "exception_class": "ValueError",
        "first_seen": NOW,
        "last_seen": NOW,
    }


def history(tenant: UUID | None, n: int) -> Row:
    # Postgres numbers them, and lets nobody else.
    return {"tenant_id": tenant, "event": "noted", "changed_by": str(n)}


def replay(tenant: UUID | None, n: int) -> Row:
    return {"id": UUID(int=n), "tenant_id": tenant, "filter": Jsonb({}), "settings": Jsonb({}), "created_by": str(n)}


def replay_item(tenant: UUID | None, n: int) -> Row:
    return {"id": UUID(int=n), "replay_id": UUID(int=1), "failed_job_id": UUID(int=n), "tenant_id": tenant}


def replay_edit(tenant: UUID | None, n: int) -> Row:
    return {"id": UUID(int=n), "failed_job_id": UUID(int=n), "tenant_id": tenant, "edit": b"{}"}


def once(tenant: UUID | None, n: int) -> Row:
    return {"id": UUID(int=n), "tenant_id": tenant, "key": f"message:{n}", "message_id": str(n)}


def outbox(tenant: UUID | None, n: int) -> Row:
    return {
        "id": n,
        "tenant_id": tenant,
        "queue": "attribution",
        "redis_id": UUID(int=n),
        "message_id": str(n),
        "actor": "an actor",
        "message": b"m",
    }


def tenant_row(tenant: UUID | None, n: int) -> Row:
    return {"id": tenant, "name": f"tenant {n}"}


def event(tenant: UUID | None, n: int) -> Row:
    return {
        "tenant_id": tenant,
        "event_id": f"event-{n}",
        "event_type": "touch",
        "visitor_id": "visitor",
        "channel": "email",
        "occurred_at": NOW,
    }


def recompute_job(tenant: UUID | None, n: int) -> Row:
    return {
        "id": UUID(int=n),
        "tenant_id": tenant,
        "window_start": NOW,
        "window_end": datetime(2025, 2, 1, tzinfo=UTC),
        "model": "linear",
        "model_version": f"1.0.{n}",
    }


def allocation(tenant: UUID | None, n: int) -> Row:
    return {
        "tenant_id": tenant,
        "job_id": UUID(int=n),
        "conversion_id": "conversion",
        "position": 0,
        "channel": "email",
        "allocated_cents": 1,
    }


def channel_day(tenant: UUID | None, n: int) -> Row:
    return {
        "tenant_id": tenant,
        "day": date(2025, 1, 1),
        "model": "linear",
        "model_version": f"1.0.{n}",
        "channel": "email",
        "allocated_cents": 1,
        "job_id": UUID(int=n),
    }


def attribution_run(tenant: UUID | None, n: int) -> Row:
    return {"id": UUID(int=n), "tenant_id": tenant, "day": date(2025, 1, 1), "correlation_id": UUID(int=n)}


def run_child(tenant: UUID | None, n: int) -> Row:
    return {"id": UUID(int=n), "run_id": UUID(int=1), "tenant_id": tenant, "model": f"model {n}"}


def llm_answer(tenant: UUID | None, n: int) -> Row:
    return {
        "id": UUID(int=n),
        "tenant_id": tenant,
        "window_start": NOW,
        "window_end": datetime(2025, 2, 1, tzinfo=UTC),
        "model": "linear",
        "model_version": f"1.0.{n}",
        "fingerprint": "f",
        "language_model": "m",
        "answer": "a",
        "input_tokens": 1,
        "output_tokens": 1,
        "cost_microcents": 1,
        "call_id": UUID(int=n),
    }


def llm_budget(tenant: UUID | None, n: int) -> Row:
    return {"tenant_id": tenant, "monthly_cents": n, "changed_by": "o"}


def llm_spending(tenant: UUID | None, n: int) -> Row:
    return {"tenant_id": tenant, "month": date(2000 + n, 1, 1)}


def llm_reservation(tenant: UUID | None, n: int) -> Row:
    return {
        "tenant_id": tenant,
        "call_id": UUID(int=n),
        "month": date(2025, 1, 1),
        "microcents": 1,
        "reserved_until": NOW,
    }


@dataclass(frozen=True)
class Table:
    """What the tests must know of a table."""

    name: str
    row: Callable[[UUID | None, int], Row]
    #: What its rights say of the worker role.
    rights: frozenset[str]
    #: A column to change, and what to.
    change: tuple[str, Any]
    tenant: str = "tenant_id"
    #: Whether the worker role may read the key and the tenant, and nothing else.
    can_be_counted: bool = False
    #: Whether it may insert, but not into every column.
    inserts_by_column: bool = False
    #: Whether rows of no tenant are of whoever is bound to none, where there may be such rows.
    of_nobody: bool = True
    #: Whether each tenant has one row at most.
    one_each: bool = False

    @property
    def key(self) -> list[str]:
        return [c.name for c in Base.metadata.tables[self.name].primary_key]

    @property
    def has_rows_of_nobody(self) -> bool:
        return self.of_nobody and bool(Base.metadata.tables[self.name].c[self.tenant].nullable)

    @property
    def refers_to_a_failed_job(self) -> bool:
        return "failed_job_id" in Base.metadata.tables[self.name].c

    def __str__(self) -> str:
        return self.name


def rights(*names: str) -> frozenset[str]:
    return frozenset(names)


#: In an order in which foreign keys hold.
TABLES: Final = [
    Table("tenants", tenant_row, rights("SELECT"), ("name", "changed"), tenant="id"),
    Table(
        "worker_failed_jobs",
        failed_job,
        rights("SELECT", "INSERT", "UPDATE", "DELETE"),
        ("error_message", "changed"),
    ),
    Table("worker_failed_job_deliveries", delivery, rights("SELECT", "INSERT", "DELETE"), ("recorded_at", NOW)),
    Table(
        "worker_failed_job_originals",
        original,
        rights("INSERT", "DELETE"),
        ("recorded_at", NOW),
        can_be_counted=True,
    ),
    Table(
        "worker_failed_job_details",
        details,
        rights("SELECT", "INSERT", "UPDATE", "DELETE"),
        ("failures", 99),
    ),
    Table("worker_failed_job_groups", group, rights("SELECT", "INSERT", "UPDATE", "DELETE"), ("title", "changed")),
    Table(
        "worker_failed_job_events", history, rights("SELECT", "INSERT"), ("reason", "changed"), inserts_by_column=True
    ),
    # One of no tenant is an operator's, for all: nobody who is bound to none makes it.
    Table("worker_replays", replay, rights("SELECT", "INSERT", "UPDATE"), ("why", "changed"), of_nobody=False),
    Table("worker_replay_items", replay_item, rights("SELECT", "UPDATE"), ("why", "changed")),
    # As originals: not for tenants to read.
    Table("worker_replay_edits", replay_edit, rights("DELETE"), ("recorded_at", NOW), can_be_counted=True),
    Table("worker_once", once, rights("SELECT", "INSERT", "DELETE"), ("message_id", "changed")),
    Table("worker_outbox", outbox, rights("SELECT", "INSERT", "DELETE"), ("queue", "changed")),
    Table("attribution_events", event, rights("SELECT", "INSERT"), ("channel", "changed")),
    Table("attribution_recompute_jobs", recompute_job, rights("SELECT", "INSERT", "UPDATE"), ("run_count", 99)),
    Table("attribution_allocations", allocation, rights("SELECT", "INSERT", "DELETE"), ("allocated_cents", 99)),
    Table("attribution_channel_days", channel_day, rights("SELECT", "INSERT", "DELETE"), ("allocated_cents", 99)),
    # As replays: one of no tenant is for all, and an operator's.
    Table("attribution_runs", attribution_run, rights("SELECT"), ("summary", "changed"), of_nobody=False),
    Table("attribution_run_children", run_child, rights("SELECT", "UPDATE"), ("succeeded_at", NOW)),
    Table("worker_llm_answers", llm_answer, rights("SELECT", "INSERT", "UPDATE"), ("answer", "changed")),
    Table("worker_llm_spending", llm_spending, rights("SELECT", "INSERT", "UPDATE"), ("calls", 99)),
    Table(
        "worker_llm_reservations",
        llm_reservation,
        rights("SELECT", "INSERT", "UPDATE", "DELETE"),
        ("microcents", 99),
    ),
    # Set by operators alone.
    Table("worker_llm_budgets", llm_budget, rights("SELECT"), ("monthly_cents", 99), one_each=True),
]

FAILED_JOBS: Final = next(t for t in TABLES if t.name == "worker_failed_jobs")

every_table = pytest.mark.parametrize("table", TABLES, ids=str)
every_actor = pytest.mark.parametrize("actor", ["worker", "owner"])

#: Rows that each test finds: two of each tenant, and one of nobody where there may be one.
OWNERS: Final = {1: A, 2: A, 3: B, 4: B, 5: None}


def test_every_table_is_tried() -> None:
    # In the one that is left out tenants may read what holds for all: a test of its own, below.
    assert {t.name for t in TABLES} | {"worker_failed_job_retention"} == set(Base.metadata.tables)


@pytest.fixture(scope="module")
def filled(cluster: Cluster, template: Database) -> Iterator[Database]:
    """A migrated database in which two tenants have rows in every table. Tests undo what they do to it."""
    with cluster.database(template.name) as database:
        with psycopg.connect(database.admin_url) as admin:
            # Each table gets the rows that the tests count, and triggers add none.
            admin.execute("SET session_replication_role = replica")
            admin.execute("INSERT INTO tenants (id, name) VALUES (%s, 'Acme'), (%s, 'Globex')", [A, B])
            for table in TABLES:
                for n, tenant in OWNERS.items():
                    if table.one_each and n not in {1, 3}:
                        continue
                    if table.name != "tenants" and (tenant or table.has_rows_of_nobody):
                        admin.execute(*insert(table, table.row(tenant, n)))
        session.configure(database.worker_url, operator_database_url=database.operator_url, pool_size=1, max_overflow=0)
        try:
            yield database
        finally:
            session.dispose()


def insert(table: Table, row: Row, more: str = "") -> tuple[sql.Composed, list[Any]]:
    statement = sql.SQL("INSERT INTO {} ({}) VALUES ({}) {}").format(
        sql.Identifier(table.name),
        sql.SQL(", ").join(map(sql.Identifier, row)),
        sql.SQL(", ").join(sql.Placeholder() * len(row)),
        sql.SQL(more),
    )
    return statement, list(row.values())


class Undo(Exception):
    """Rolls a test's transaction back."""


@contextmanager
def acting(actor: str, database: Database, tenant: UUID | None) -> Iterator[psycopg.Cursor[Any]]:
    """A cursor in a transaction of ``tenant``, which is rolled back; the worker's is one of ``db.session``."""
    try:
        if actor == "worker":
            with tenant_context(tenant), transaction() as s:
                driver: Any = s.connection().connection.driver_connection
                with driver.cursor(row_factory=tuple_row) as cursor:
                    yield cursor
                raise Undo
        with psycopg.connect(database.owner_url) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT set_config('app.current_tenant_id', %s, true)", [str(tenant or "")])
            yield cursor
            raise Undo
    except Undo:
        pass


def may(actor: str, table: Table, right: str) -> bool:
    return actor == "owner" or right in table.rights


@contextmanager
def refused(sqlstate: str, message: str = "") -> Iterator[None]:
    with pytest.raises(psycopg.Error) as caught:
        yield
    assert caught.value.sqlstate == sqlstate, caught.value
    assert message in str(caught.value)


def cannot_read(table: Table, cursor: psycopg.Cursor[Any], relation: str | None = None) -> bool:
    """Tell that the worker may not read ``table`` at all, having tried; nothing else can be done with the cursor."""
    if "SELECT" in table.rights or (table.can_be_counted and relation is None):
        return False
    with refused(INSUFFICIENT_PRIVILEGE, "permission denied"):
        count(cursor, relation or table.name)
    return True


def count(cursor: psycopg.Cursor[Any], relation: str, where: str = "true", values: list[Any] | None = None) -> int:
    query = f"SELECT count(*) FROM {relation} WHERE {where}"
    row = cursor.execute(query.encode(), values).fetchone()
    assert row is not None
    return int(row[0])


def everything(database: Database, table: Table) -> list[Any]:
    """Every row, as nobody bound by row-level security sees them."""
    with psycopg.connect(database.admin_url) as admin:
        return sorted(admin.execute(f"SELECT t::text FROM {table} t".encode()).fetchall())


def own(table: Table, tenant: UUID | None) -> int:
    """How many rows a tenant has."""
    if table.name == "tenants" or table.one_each:
        return 1 if tenant else 0
    return sum(1 for owner in OWNERS.values() if owner == tenant and (owner or table.has_rows_of_nobody))


def number(table: Table) -> int:
    return sum(own(table, tenant) for tenant in (A, B, None))


# --- What keeps these tests from passing vacuously -----------------------------------------------


def test_nobody_here_is_above_row_level_security(filled: Database) -> None:
    with psycopg.connect(filled.admin_url) as admin:
        found: dict[str, bool] = dict(
            admin.execute(
                "SELECT rolname, rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = ANY(%s)",
                [[WORKER, OPERATOR, OWNER, "app_user", "app_operator"]],
            ).fetchall()
        )
    assert found == dict.fromkeys([WORKER, OPERATOR, OWNER, "app_user", "app_operator"], False)


def test_the_roles_are_who_they_say(filled: Database) -> None:
    with acting("worker", filled, A) as cursor:
        assert cursor.execute("SELECT session_user, current_user").fetchone() == (WORKER, WORKER)
    with acting("owner", filled, A) as cursor:
        assert cursor.execute("SELECT session_user, current_user").fetchone() == (OWNER, OWNER)


@every_table
def test_row_level_security_is_enabled_and_forced(filled: Database, table: Table) -> None:
    with psycopg.connect(filled.admin_url) as admin:
        found = admin.execute(
            "SELECT relrowsecurity, relforcerowsecurity, pg_get_userbyid(relowner) FROM pg_class"
            " WHERE oid = to_regclass(%s)",
            [table.name],
        ).fetchone()
    assert found == (True, True, OWNER)


@every_table
def test_the_worker_role_has_the_rights_it_needs_and_no_more(filled: Database, table: Table) -> None:
    with psycopg.connect(filled.worker_url) as worker:
        found = worker.execute(
            "SELECT r FROM unnest(%s::text[]) r WHERE has_table_privilege(%s, r)",
            [["SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER"], table.name],
        ).fetchall()
    assert {right for (right,) in found} == table.rights - ({"INSERT"} if table.inserts_by_column else set())


@every_table
def test_each_tenant_has_rows_to_be_kept_from_the_other(filled: Database, table: Table) -> None:
    assert own(table, A) > 0
    assert own(table, B) > 0
    assert len(everything(filled, table)) == number(table)


# --- Reading --------------------------------------------------------------------------------------


@every_actor
@every_table
def test_a_tenant_sees_its_own_rows_only(filled: Database, table: Table, actor: str) -> None:
    for tenant in (A, B, None):
        with acting(actor, filled, tenant) as cursor:
            if actor == "worker" and cannot_read(table, cursor):
                continue
            assert count(cursor, table.name) == own(table, tenant)
            # Also those that are asked for by name.
            other = B if tenant == A else A
            assert count(cursor, table.name, f"{table.tenant} = %s", [other]) == 0
            assert count(cursor, table.name, f"{table.tenant} IS DISTINCT FROM %s", [tenant]) == 0


@every_table
def test_the_operator_sees_all_rows(filled: Database, table: Table) -> None:
    with operator_transaction() as s:
        driver: Any = s.connection().connection.driver_connection
        assert count(driver.cursor(), table.name) == number(table)


@every_table
def test_a_connection_that_says_nothing_sees_no_tenants_rows(filled: Database, table: Table) -> None:
    for url in (filled.worker_url, filled.owner_url):
        with psycopg.connect(url) as connection, connection.cursor() as cursor:
            if url == filled.worker_url and cannot_read(table, cursor):
                continue
            # NULL where the setting was never made, '' after a transaction that made it.
            assert count(cursor, table.name) == own(table, None)
            cursor.execute("SELECT set_config('app.current_tenant_id', %s, true)", [str(A)])
            connection.commit()
            assert cursor.execute("SELECT current_setting('app.current_tenant_id')").fetchone() == ("",)
            assert count(cursor, table.name) == own(table, None)


@every_actor
@every_table
@pytest.mark.parametrize("value", ["nonsense", "' OR true --", str(A)[:-1], f"{A},{B}", "%", "NULL", " "])
def test_a_malformed_tenant_is_an_error_and_not_rows(filled: Database, table: Table, actor: str, value: str) -> None:
    with acting(actor, filled, None) as cursor:
        cursor.execute("SELECT set_config('app.current_tenant_id', %s, true)", [value])
        with refused(INVALID_TEXT):
            count(cursor, table.name)


@every_table
def test_calling_oneself_the_operator_gives_the_worker_role_nothing(filled: Database, table: Table) -> None:
    with acting("worker", filled, A) as cursor:
        cursor.execute("SET LOCAL app.execution_context = 'operator'")
        if cannot_read(table, cursor):
            return
        assert count(cursor, table.name) == own(table, A)
        with refused(INSUFFICIENT_PRIVILEGE):
            cursor.execute("SET LOCAL ROLE app_operator")


@every_actor
@every_table
def test_copying_out_gives_own_rows_only(filled: Database, table: Table, actor: str) -> None:
    copy_out = f"COPY {table} ({table.tenant}) TO STDOUT".encode()
    with acting(actor, filled, A) as cursor:
        if not may(actor, table, "SELECT") and not table.can_be_counted:
            with refused(INSUFFICIENT_PRIVILEGE, "permission denied"), cursor.copy(copy_out):
                pass
            return
        with cursor.copy(copy_out) as copy:
            rows = list(copy.rows())
    assert rows == [(str(A),)] * own(table, A)


# --- Writing --------------------------------------------------------------------------------------


@every_actor
@every_table
def test_a_tenant_changes_its_own_rows_only(filled: Database, table: Table, actor: str) -> None:
    column, value = table.change
    with acting(actor, filled, A) as cursor:
        update = f"UPDATE {table} SET {column} = %s".encode()
        if may(actor, table, "UPDATE"):
            assert cursor.execute(update, [value]).rowcount == own(table, A)
            assert cursor.execute(update + f" WHERE {table.tenant} = %s".encode(), [value, B]).rowcount == 0
        else:
            with refused(INSUFFICIENT_PRIVILEGE, "permission denied"):
                cursor.execute(update, [value])


@every_actor
@every_table
def test_a_tenant_deletes_its_own_rows_only(filled: Database, table: Table, actor: str) -> None:
    before = everything(filled, table)
    with acting(actor, filled, A) as cursor:
        delete = f"DELETE FROM {table}".encode()
        if may(actor, table, "DELETE"):
            # First the other's, by name: tenants' own row is referred to by others.
            assert cursor.execute(delete + f" WHERE {table.tenant} = %s".encode(), [B]).rowcount == 0
            if table.name != "tenants":
                assert cursor.execute(delete).rowcount == own(table, A)
        else:
            with refused(INSUFFICIENT_PRIVILEGE, "permission denied"):
                cursor.execute(delete)
    assert everything(filled, table) == before


@every_table
def test_nobody_truncates_as_a_worker(filled: Database, table: Table) -> None:
    # Row-level security does not stop TRUNCATE; only the missing right does.
    with acting("worker", filled, A) as cursor, refused(INSUFFICIENT_PRIVILEGE, "permission denied"):
        cursor.execute(f"TRUNCATE {table} CASCADE".encode())


@every_actor
@every_table
def test_a_tenant_does_not_write_in_the_name_of_another(filled: Database, table: Table, actor: str) -> None:
    stranger = B if table.name != "tenants" else uuid4()
    with acting(actor, filled, A) as cursor:
        allowed = may(actor, table, "INSERT")
        with refused(INSUFFICIENT_PRIVILEGE, POLICY if allowed else "permission denied"):
            cursor.execute(*insert(table, table.row(stranger, 3 if table.refers_to_a_failed_job else 77)))


@every_actor
@every_table
def test_a_tenant_writes_its_own(filled: Database, table: Table, actor: str) -> None:
    """Else the refusals above would prove little."""
    tenant = uuid4() if table.name == "tenants" or table.one_each else A
    row = table.row(tenant, 77)
    with acting(actor, filled, tenant) as cursor:
        if table.refers_to_a_failed_job:
            cursor.execute(*insert(FAILED_JOBS, failed_job(tenant, 77)))
            # A trigger has written them already.
            cursor.execute("DELETE FROM worker_failed_job_details WHERE failed_job_id = %s", [UUID(int=77)])
        if may(actor, table, "INSERT"):
            assert cursor.execute(*insert(table, row)).rowcount == 1
        else:
            with refused(INSUFFICIENT_PRIVILEGE, "permission denied"):
                cursor.execute(*insert(table, row))


@every_actor
@every_table
def test_a_tenant_cannot_hand_its_rows_to_another(filled: Database, table: Table, actor: str) -> None:
    with acting(actor, filled, A) as cursor:
        allowed = may(actor, table, "UPDATE")
        with refused(INSUFFICIENT_PRIVILEGE, POLICY if allowed else "permission denied"):
            cursor.execute(f"UPDATE {table} SET {table.tenant} = %s".encode(), [B])


@every_actor
@every_table
def test_an_upsert_over_anothers_row_is_an_error(filled: Database, table: Table, actor: str) -> None:
    if table.inserts_by_column:
        # Its key is nobody's to choose: tests/integration/test_tenant_in_sql.py.
        return
    before = everything(filled, table)
    column, value = table.change
    on_conflict = f"ON CONFLICT ({', '.join(table.key)}) DO UPDATE SET {column} = EXCLUDED.{column}"
    allowed = may(actor, table, "INSERT") and may(actor, table, "UPDATE")
    # The row as it is, and the same key under one's own name, where the key leaves room for that.
    attempts = [B] if table.tenant in table.key else [B, A]
    for tenant in attempts:
        with acting(actor, filled, A) as cursor:
            row = {**table.row(tenant, 3), column: value}
            if table.name == "tenants":
                row["id"] = B
            with refused(INSUFFICIENT_PRIVILEGE, POLICY if allowed else "permission denied"):
                cursor.execute(*insert(table, row, on_conflict))
    assert everything(filled, table) == before


@every_actor
@every_table
def test_an_insert_over_anothers_row_that_may_do_nothing_leaves_it(filled: Database, table: Table, actor: str) -> None:
    if table.inserts_by_column:
        # Its key is nobody's to choose: tests/integration/test_tenant_in_sql.py.
        return
    before = everything(filled, table)
    if table.tenant in table.key:
        # Only in the other's name can it meet the other's row, and that is refused.
        with acting(actor, filled, A) as cursor:
            allowed = may(actor, table, "INSERT")
            with refused(INSUFFICIENT_PRIVILEGE, POLICY if allowed else "permission denied"):
                cursor.execute(*insert(table, table.row(B, 3), "ON CONFLICT DO NOTHING"))
    else:
        with acting(actor, filled, A) as cursor:
            if not may(actor, table, "INSERT"):
                with refused(INSUFFICIENT_PRIVILEGE, "permission denied"):
                    cursor.execute(*insert(table, table.row(A, 3), "ON CONFLICT DO NOTHING"))
                return
            assert cursor.execute(*insert(table, table.row(A, 3), "ON CONFLICT DO NOTHING")).rowcount == 0
            if actor == "worker" and cannot_read(table, cursor):
                return
            # And it learns no more than that it did nothing.
            key = table.key[0]
            assert count(cursor, table.name, f"{key} = %s", [table.row(A, 3)[key]]) == 0
    assert everything(filled, table) == before


@every_actor
@every_table
def test_copying_in_is_refused(filled: Database, table: Table, actor: str) -> None:
    with acting(actor, filled, A) as cursor:
        allowed = may(actor, table, "INSERT")
        copy_in = f"COPY {table} ({table.tenant}) FROM STDIN".encode()
        with refused(NOT_SUPPORTED if allowed else INSUFFICIENT_PRIVILEGE), cursor.copy(copy_in) as copy:
            copy.write_row([B])


@every_table
def test_a_temporary_table_is_the_way_to_copy_in(filled: Database, table: Table) -> None:
    """And what it brings of others is refused as ever."""
    if not {"SELECT", "INSERT"} <= table.rights:
        return
    strange, mine = table.row(B, 3), table.row(A, 78)
    for row, theirs in ((mine, False), (strange, True)):
        columns = sql.SQL(", ").join(map(sql.Identifier, row))
        name = sql.Identifier(table.name)
        with acting("worker", filled, A) as cursor:
            if table.refers_to_a_failed_job:
                cursor.execute(*insert(FAILED_JOBS, failed_job(A, 78)))
                cursor.execute("DELETE FROM worker_failed_job_details WHERE failed_job_id = %s", [UUID(int=78)])
            cursor.execute(
                sql.SQL(
                    "CREATE TEMPORARY TABLE incoming (LIKE {} INCLUDING DEFAULTS INCLUDING IDENTITY) ON COMMIT DROP"
                ).format(name)
            )
            with cursor.copy(sql.SQL("COPY incoming ({}) FROM STDIN").format(columns)) as copy:
                copy.write_row([json.dumps(v.obj) if isinstance(v, Jsonb) else v for v in row.values()])
            move = sql.SQL("INSERT INTO {} ({}) SELECT {} FROM incoming").format(name, columns, columns)
            if theirs:
                with refused(INSUFFICIENT_PRIVILEGE, POLICY):
                    cursor.execute(move)
            else:
                assert cursor.execute(move).rowcount == 1


def test_a_tenant_reads_its_own_rules_and_those_for_all_and_writes_none(filled: Database) -> None:
    add = "INSERT INTO worker_failed_job_retention (tenant_id, subject, keep_days, changed_by) VALUES (%s, %s, 1, 'o')"
    with psycopg.connect(filled.admin_url, autocommit=True) as admin:
        for tenant in (A, B, None):
            admin.execute(add, [tenant, "resolved"])
    with acting("worker", filled, A) as cursor:
        cursor.execute("SELECT tenant_id FROM worker_failed_job_retention")
        assert {tenant for (tenant,) in cursor.fetchall()} == {A, None}
        with refused(INSUFFICIENT_PRIVILEGE, "permission denied"):
            cursor.execute(add, [A, "payload"])


# --- Through what the owner lends -----------------------------------------------------------------


@contextmanager
def lent(database: Database, table: Table, *statements: str) -> Iterator[None]:
    """Make things as the owner, and drop them again."""
    with psycopg.connect(database.owner_url, autocommit=True) as owner:
        owner.execute("CREATE SCHEMA lent")
        try:
            owner.execute("GRANT USAGE ON SCHEMA lent TO app_user")
            for statement in statements:
                owner.execute(statement.format(table=table).encode())
            yield
        finally:
            owner.execute("DROP SCHEMA lent CASCADE")


@every_table
@pytest.mark.parametrize("how", ["WITH (security_invoker = true)", ""], ids=["of the invoker", "of the owner"])
def test_a_view_shows_own_rows_only(filled: Database, table: Table, how: str) -> None:
    """A plain view reads as its owner, whom the forced policies bind to the same tenant."""
    make = (
        f"CREATE VIEW lent.seen {how} AS SELECT * FROM {{table}}",
        "GRANT SELECT, INSERT, UPDATE, DELETE ON lent.seen TO app_user",
    )
    with lent(filled, table, *make):
        for tenant in (A, B, None):
            with acting("worker", filled, tenant) as cursor:
                if how and cannot_read(table, cursor, "lent.seen"):
                    continue
                assert count(cursor, "lent.seen") == own(table, tenant)
        with acting("worker", filled, A) as cursor:
            column, value = table.change
            if how and "UPDATE" not in table.rights:
                with refused(INSUFFICIENT_PRIVILEGE, "permission denied"):
                    cursor.execute(f"UPDATE lent.seen SET {column} = %s".encode(), [value])
            else:
                # Through a plain view it is the owner who writes, with the owner's rights, but the tenant's rows.
                assert cursor.execute(f"UPDATE lent.seen SET {column} = %s".encode(), [value]).rowcount == own(table, A)


@every_table
def test_a_plain_view_of_the_owner_lends_the_owners_policies_too(filled: Database, table: Table) -> None:
    """Why views should be ``security_invoker``: the owner may call itself operator, and so may all who use its view."""
    for how, seen in (("WITH (security_invoker = true)", own(table, A)), ("", number(table))):
        make = (
            f"CREATE VIEW lent.seen {how} AS SELECT * FROM {{table}}",
            "GRANT SELECT ON lent.seen TO app_user",
        )
        with lent(filled, table, *make), acting("worker", filled, A) as cursor:
            cursor.execute("SET LOCAL app.execution_context = 'operator'")
            if how and cannot_read(table, cursor, "lent.seen"):
                continue
            assert count(cursor, "lent.seen") == seen


@every_table
def test_a_function_of_the_owner_sees_the_callers_rows_only(filled: Database, table: Table) -> None:
    make = (
        "CREATE FUNCTION lent.seen() RETURNS bigint LANGUAGE sql SECURITY DEFINER SET search_path = public"
        " AS 'SELECT count(*) FROM {table}'",
        "CREATE FUNCTION lent.who() RETURNS name LANGUAGE sql SECURITY DEFINER AS 'SELECT current_user'",
        "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA lent TO app_user",
    )
    with lent(filled, table, *make):
        for tenant in (A, B, None):
            with acting("worker", filled, tenant) as cursor:
                assert cursor.execute("SELECT lent.who(), lent.seen()").fetchone() == (OWNER, own(table, tenant))


# --- Speed ----------------------------------------------------------------------------------------


def test_a_tenants_rows_are_found_by_index(cluster: Cluster, template: Database) -> None:
    tenant = UUID("00000000-0000-4000-8000-000000000007")
    with cluster.database(template.name) as database:
        with psycopg.connect(database.admin_url, autocommit=True) as admin:
            admin.execute(
                "INSERT INTO worker_failed_jobs (id, task_id, task_name, tenant_id, error_type, exception_class,"
                " error_message)"
                " SELECT gen_random_uuid(), n::text, 'worker.llm.summarise',"
                " ('00000000-0000-4000-8000-' || lpad((n % 50)::text, 12, '0'))::uuid, 'unknown', 'ValueError', 'no'"
                " FROM generate_series(1, 20000) n"
            )
            admin.execute("ANALYZE worker_failed_jobs")
        with psycopg.connect(database.worker_url) as worker:
            worker.execute("SELECT set_config('app.current_tenant_id', %s, true)", [str(tenant)])
            row = worker.execute("EXPLAIN (ANALYZE, FORMAT JSON) SELECT * FROM worker_failed_jobs").fetchone()
    assert row is not None
    nodes = list(plan_nodes(row[0][0]["Plan"]))
    assert "idx_worker_failed_jobs_tenant_id" in {n.get("Index Name") for n in nodes}
    assert "Seq Scan" not in {n["Node Type"] for n in nodes}
    assert nodes[0]["Actual Rows"] == 400


def plan_nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", []):
        yield from plan_nodes(child)
