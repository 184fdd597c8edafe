"""Failed jobs in numbers: what a deployment of 200 tenants has after 90 days, loaded past triggers and checks.

500 groups, some of them far more frequent than others; 200 tenants, of which the first has a fifth of all failures and
the last few. Rows lie in the order in which they failed, as a table that is only appended to has them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

import psycopg
from psycopg import sql

from db.failures import Failure
from tests.servers import Cluster, Database, running_cluster

GROUPS, TENANTS, ACTORS = 500, 200, 40
DAYS = 90
#: The tenant of a fifth of all rows, and one of the small.
BIG, SMALL = UUID(int=1), UUID(int=TENANTS)

#: Texts to search for, and in how many rows they are.
TEXTS = {
    "rare, 3 rows": "order 000000777",
    "an id, 3 rows": "md5:777",
    "middling, 0.1 %": "campaign 0417",
    "common, a third": "connection to server",
    "common, old rows alone": "/app/releases/v02/",
    "in no row, each word is": "refused timeout KeyError campaign 0417 connection",
    "in no row, three letters": "qzx",
    "two letters": "v0",
}

_QUEUES = ("attribution", "llm", "maintenance", "housekeeping")
# Error type, exception class, message; the first of them in a third of all rows.
_KINDS = (
    (
        "database_error",
        "sqlalchemy.exc.OperationalError",
        '(psycopg.OperationalError) connection to server at "10.4.{byte}.17", port 5432 failed: Connection refused'
        " while reading campaign {campaign} of order {order}",
    ),
    ("validation_error", "ValueError", "window of campaign {campaign} ends before it begins: {uuid}"),
    ("validation_error", "KeyError", "'revenue_cents' of order {order}"),
    (
        "upstream_error",
        "httpx.HTTPStatusError",
        "Server error '502 Bad Gateway' for url 'https://api.example.com/v2/orders/{uuid}?campaign={campaign}'",
    ),
    ("rate_limited", "openai.RateLimitError", "Error code: 429 - request {uuid} of campaign {campaign} was throttled"),
    ("timeout", "dramatiq.middleware.time_limit.TimeLimitExceeded", ""),
    ("application_error", "shop.errors.NotReconciled", "order {order} differs by {byte} cents from what was booked"),
    (
        "database_error",
        "sqlalchemy.exc.IntegrityError",
        "(psycopg.errors.UniqueViolation) duplicate key value violates"
        ' unique constraint "orders_pkey" DETAIL: Key (id)=({uuid}) already exists.',
    ),
    ("unknown", "RuntimeError", "unexpected state of {uuid}"),
    ("expired", "middleware.errors.MessageExpired", "message {uuid} is older than its max_age"),
    ("configuration_error", "db.errors.ConfigurationError", "no model is configured for campaign {campaign}"),
    ("tenant_error", "db.errors.InvalidTenant", "tenant_id must be a UUID, not 'order {order}'"),
    ("unknown_actor", "middleware.errors.UnknownActor", "no actor of that name on worker {byte}"),
    ("undecodable", "middleware.errors.Undecodable", "Expecting value: line 1 column {byte} (char {byte})"),
    ("worker_lost", "middleware.errors.WorkerLost", "the process that ran order {order} was killed"),
)
_WORDS = [
    "load",
    "apply",
    "merge",
    "share",
    "allocate",
    "fetch",
    "parse",
    "convert",
    "reconcile",
    "book",
    "split",
    "collect",
    "notify",
    "enrich",
    "score",
    "render",
    "sync",
    "import",
    "export",
    "price",
    "ship",
    "refund",
    "settle",
    "rank",
    "dedupe",
]
_NOUNS = [
    "window",
    "order",
    "campaign",
    "invoice",
    "touch",
    "visitor",
    "ledger",
    "feed",
    "report",
    "batch",
    "payment",
    "customer",
    "channel",
    "budget",
]


@dataclass(frozen=True, slots=True)
class Shape:
    """What the failures of one group have in common; values are put in where braces stand."""

    number: int
    fingerprint: str
    task_name: str
    queue: str
    error_type: str
    exception_class: str
    title: str
    place: str
    message: str
    traceback: str


def shapes() -> list[Shape]:
    """Return the groups, the same each time."""
    chance = random.Random(5)
    made = []
    for n in range(GROUPS):
        # Every fifth is the first kind, so is the most frequent group; the others share the rest, the last one a few.
        number = 0 if n % 5 == 0 else 1 + int((len(_KINDS) - 2) * chance.random() ** 1.7)
        kind = _KINDS[-1 if n % 125 == 124 else number]
        error_type, exception_class, message = kind
        actor = chance.randrange(ACTORS)
        queue = _QUEUES[actor % len(_QUEUES)]
        frames, place = [], ""
        for _ in range(chance.randint(6, 20)):
            module, function = chance.choice(_NOUNS), f"{chance.choice(_WORDS)}_{chance.choice(_NOUNS)}"
            place = f"shop.{module}:{function}"
            frames.append(
                f'  File "/app/releases/v{{release}}/shop/{module}.py", line {chance.randint(10, 900)}, in {function}\n'
                f"    {chance.choice(_NOUNS)} = {chance.choice(_WORDS)}_{chance.choice(_NOUNS)}"
                f"({chance.choice(_NOUNS)}, {chance.choice(_NOUNS)}_id)\n"
            )
        made.append(
            Shape(
                number=n,
                fingerprint=f"{chance.getrandbits(128):032x}",
                task_name=f"shop.{queue}.{_WORDS[actor % len(_WORDS)]}_{_NOUNS[actor % len(_NOUNS)]}_{actor}",
                queue=queue,
                error_type=error_type,
                exception_class=exception_class,
                title=message.format(order="*", campaign="*", uuid="*", byte="*"),
                place=place,
                message=message,
                traceback=(
                    f"Traceback (most recent call last):\n{''.join(frames)}{exception_class}: {message}\n"
                    "[SQL: SELECT * FROM orders WHERE id = {uuid} AND campaign = {campaign}]"
                ),
            )
        )
    return made


def failures(count: int, tenant_id: UUID) -> list[Failure]:
    """Return failures of one tenant that no table has yet."""
    known, now, made = shapes(), datetime.now(UTC), []
    for _ in range(count):
        shape = known[int(GROUPS * random.random() ** 3)]  # noqa: S311
        message_id, customer = uuid4(), uuid4()
        order, campaign = random.randrange(10**9), random.randrange(1000)  # noqa: S311
        values = {"order": f"{order:09}", "campaign": f"{campaign:04}", "uuid": str(customer), "byte": str(order % 256)}
        made.append(
            Failure(
                delivery_id=str(uuid4()),
                task_id=str(message_id),
                task_name=shape.task_name,
                queue=shape.queue,
                worker=f"web-{order % 8}:4711",
                task_args=[order, str(customer)],
                task_kwargs={"campaign_id": campaign, "customer": str(customer), "mode": "incremental"},
                tenant_id=tenant_id,
                error_type=shape.error_type,
                exception_class=shape.exception_class,
                error_message=shape.message.format(**values),
                traceback=shape.traceback.format(release="12", **values),
                retry_count=3,
                last_retry_at=now,
                correlation_id=message_id,
                failed_at=now,
                original=b'{"queue_name":"%s","message_id":"%s"}'
                % (shape.queue.encode(), str(message_id).encode())
                * 5,
                fingerprint=shape.fingerprint,
                title=shape.title,
                place=shape.place,
                attempts=[
                    {
                        "at": now.isoformat(timespec="milliseconds"),
                        "worker": "web-1:4711",
                        "exception_class": shape.exception_class,
                        "message": shape.title[:200],
                        "place": shape.place,
                    }
                ]
                * 4,
            )
        )
    return made


# --- Server ---------------------------------------------------------------------------------------

#: As a server for a million rows has them; the rest is Postgres' default.
MEMORY = {"shared_buffers": "1GB", "max_wal_size": "4GB", "maintenance_work_mem": "1GB"}
DURABLE = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}


@contextmanager
def loaded(rows: int, folder: Path | None) -> Iterator[Database]:
    """A durable server with a database of ``rows`` failed jobs, kept in ``folder`` for the next time if one is named."""
    from worker import migrate

    with running_cluster({**DURABLE, **MEMORY}, folder=folder) as cluster:
        database = Database(cluster, f"failed_jobs_{rows}")
        if not _exists(database):
            loading = Database(cluster, f"{database.name}_loading")
            _create(loading)
            migrate.upgrade(loading.owner_url)
            load(loading, rows)
            with psycopg.connect(cluster.admin_url, autocommit=True) as connection:
                connection.execute(
                    sql.SQL("ALTER DATABASE {} RENAME TO {}").format(
                        sql.Identifier(loading.name), sql.Identifier(database.name)
                    )
                )
        yield database


def _exists(database: Database) -> bool:
    with psycopg.connect(database.cluster.admin_url) as connection:
        return bool(connection.execute("SELECT FROM pg_database WHERE datname = %s", [database.name]).rowcount)


def _create(database: Database) -> None:
    with psycopg.connect(database.cluster.admin_url, autocommit=True) as connection:
        # What an earlier run did not finish.
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(database.name)))
        connection.execute(
            sql.SQL("CREATE DATABASE {} OWNER {}").format(
                sql.Identifier(database.name), sql.Identifier(_owner(database.cluster))
            )
        )


def _owner(cluster: Cluster) -> str:
    from tests.servers import OWNER

    return OWNER


# --- Loading --------------------------------------------------------------------------------------

_CHANCE = """
CREATE FUNCTION chance(n bigint, salt bigint) RETURNS float8 LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT (hashint8extended(n, salt) & 2147483647) / 2147483648.0::float8
$$
"""
# Three rows after each other are of one tenant and one piece of work, and tell of one order.
_ROWS = """
CREATE UNLOGGED TABLE loading AS
SELECT
    n,
    md5('row ' || n)::uuid AS id,
    md5('message ' || n)::uuid AS message_id,
    ('00000000-0000-0000-0000-' || lpad(to_hex(CASE
        WHEN chance(n / 3, 1) < 0.2 THEN 1 ELSE 2 + floor(%(tenants)s * chance(n / 3, 2) ^ 3)::int
    END), 12, '0'))::uuid AS tenant_id,
    floor(%(groups)s * chance(n, 3) ^ 3)::int AS number,
    CASE
        WHEN chance(n, 4) < 0.60 THEN 'resolved' WHEN chance(n, 4) < 0.90 THEN 'pending'
        WHEN chance(n, 4) < 0.98 THEN 'abandoned' ELSE 'in_progress'
    END AS status,
    now() - make_interval(secs => (%(rows)s - n) * %(days)s * 86400.0 / %(rows)s) AS failed_at,
    md5('work ' || n / 3)::uuid AS correlation_id,
    lpad((n / 3)::text, 9, '0') AS "order",
    lpad(floor(1000 * chance(n, 5))::int::text, 4, '0') AS campaign,
    md5('customer ' || n / 3)::uuid::text AS customer,
    floor(256 * chance(n, 6))::int::text AS byte,
    lpad(((n - 1) * 13 / %(rows)s)::text, 2, '0') AS release
FROM generate_series(1, %(rows)s) n
"""
_FILLED = """replace(replace(replace(replace(replace(
    shape.{0}, '{{order}}', loading.order), '{{campaign}}', loading.campaign), '{{uuid}}', loading.customer),
    '{{byte}}', loading.byte), '{{release}}', loading.release)"""
_JOBS = f"""
INSERT INTO worker_failed_jobs (
    id, task_id, task_name, queue, worker, task_args, task_kwargs, tenant_id, error_type, exception_class,
    error_message, traceback, retry_count, last_retry_at, status, remediation_notes, resolved_at, correlation_id,
    failed_at
)
SELECT
    id, message_id, task_name, queue, 'web-' || n %% 8 || ':4711', jsonb_build_array(n / 3, customer),
    jsonb_build_object('campaign_id', campaign::int, 'customer', customer, 'mode', 'incremental'),
    tenant_id, error_type, exception_class, {_FILLED.format("message")}, {_FILLED.format("traceback")},
    3, failed_at, status, CASE WHEN status IN ('resolved', 'abandoned') THEN 'looked at' END,
    CASE WHEN status = 'resolved' THEN failed_at + interval '2 hours' END, correlation_id, failed_at
FROM loading JOIN shape USING (number) WHERE n BETWEEN %(first)s AND %(last)s ORDER BY n
"""
_BESIDE = (
    """
    INSERT INTO worker_failed_job_details (failed_job_id, tenant_id, fingerprint, status, failed_at, attempts)
    SELECT id, tenant_id, fingerprint, status, failed_at, to_jsonb(array_fill(
        jsonb_build_object('at', failed_at, 'worker', 'web-1:4711', 'exception_class', exception_class,
            'message', title, 'place', place), ARRAY[4]))
    FROM loading JOIN shape USING (number) ORDER BY n
    """,
    """
    INSERT INTO worker_failed_job_events (failed_job_id, tenant_id, event, changed_by, after, happened_at)
    SELECT id, tenant_id, 'captured', 'web-' || n % 8 || ':4711', jsonb_build_object(
        'status', 'pending', 'task_name', task_name, 'error_type', error_type, 'exception_class', exception_class,
        'retry_count', 3), failed_at
    FROM loading JOIN shape USING (number) ORDER BY n
    """,
    """
    INSERT INTO worker_failed_job_originals (failed_job_id, tenant_id, original, recorded_at)
    SELECT id, tenant_id, convert_to(jsonb_build_object('queue_name', queue, 'actor_name', task_name,
        'args', jsonb_build_array(n / 3, customer), 'message_id', message_id,
        'options', jsonb_build_object('tenant_id', tenant_id))::text, 'UTF8'), failed_at
    FROM loading JOIN shape USING (number) ORDER BY n
    """,
    """
    INSERT INTO worker_failed_job_deliveries (delivery_id, failed_job_id, tenant_id, recorded_at)
    SELECT md5('delivery ' || n)::uuid, id, tenant_id, failed_at FROM loading ORDER BY n
    """,
    """
    INSERT INTO worker_failed_job_groups (
        tenant_id, fingerprint, task_name, queue, error_type, exception_class, title, place, first_seen, last_seen,
        failures, pending, in_progress, resolved, abandoned, sample_id
    )
    SELECT tenant_id, fingerprint, max(task_name), max(queue), max(error_type), max(exception_class), max(title),
        max(place), min(failed_at), max(failed_at), count(*), count(*) FILTER (WHERE status = 'pending'),
        count(*) FILTER (WHERE status = 'in_progress'), count(*) FILTER (WHERE status = 'resolved'),
        count(*) FILTER (WHERE status = 'abandoned'), (array_agg(id ORDER BY failed_at DESC))[1]
    FROM loading JOIN shape USING (number) GROUP BY tenant_id, fingerprint
    """,
)
_TABLES = ("worker_failed_jobs", "worker_failed_job_details", "worker_failed_job_events", "worker_failed_job_groups")


def load(database: Database, rows: int) -> None:
    """Fill an empty, migrated database. As a superuser, whom neither triggers, checks nor policies hold up."""

    def connect() -> psycopg.Connection:
        connection = psycopg.connect(database.admin_url, autocommit=True)
        connection.execute("SET session_replication_role = replica; SET synchronous_commit = off")
        return connection

    with connect() as connection:
        indexes = connection.execute(
            "SELECT indexname, indexdef FROM pg_indexes i WHERE tablename = ANY(%s) AND NOT EXISTS"
            " (SELECT FROM pg_constraint WHERE conname = i.indexname)",
            [list(_TABLES)],
        ).fetchall()
        for name, _ in indexes:
            connection.execute(sql.SQL("DROP INDEX {}").format(sql.Identifier(name)))
        connection.execute("INSERT INTO tenants (id, name) SELECT ('00000000-0000-0000-0000-' || lpad(to_hex(n), 12,"
                           " '0'))::uuid, 'Tenant ' || n FROM generate_series(1, %s) n", [TENANTS])  # fmt: skip
        fields = ", ".join(f"{name} text" for name in Shape.__slots__ if name != "number")
        connection.execute(f"CREATE UNLOGGED TABLE shape (number int, {fields})")
        with connection.cursor() as cursor:
            cursor.executemany(
                f"INSERT INTO shape VALUES ({', '.join(['%s'] * len(Shape.__slots__))})",
                [[getattr(shape, name) for name in Shape.__slots__] for shape in shapes()],
            )
        connection.execute(_CHANCE)
        with psycopg.ClientCursor(connection) as cursor:
            cursor.execute(_ROWS, {"rows": rows, "days": DAYS, "groups": GROUPS, "tenants": TENANTS - 1})
        connection.execute("CREATE INDEX ON loading (n); ANALYZE loading; ANALYZE shape")

    def run(statement: str, first: int = 0, last: int = 0) -> None:
        with connect() as connection, psycopg.ClientCursor(connection) as cursor:
            cursor.execute(statement, {"first": first, "last": last} if last else None)

    with ThreadPoolExecutor(2) as pool:
        # In pieces, so that both write at about the same place.
        jobs = [pool.submit(run, _JOBS, first, min(first + 9_999, rows)) for first in range(1, rows + 1, 10_000)]
        for future in [*jobs, *(pool.submit(run, statement) for statement in _BESIDE)]:
            future.result()
    with connect() as connection:
        for _, definition in indexes:
            connection.execute(definition)
        connection.execute("DROP TABLE loading, shape; DROP FUNCTION chance")
        connection.execute("VACUUM ANALYZE")
        connection.execute("CHECKPOINT")
