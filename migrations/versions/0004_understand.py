"""What makes failures understandable: groups of the like, attempts, the history of each row, and how long it is kept.

Whoever changes a row of ``worker_failed_jobs``, our own code or a person in psql, changes its history and its group's
counts in the same transaction: triggers see to it.
"""

from __future__ import annotations

from alembic import op

from db.table_building import (
    BIGINT,
    INTEGER,
    JSONB,
    NOW,
    OF_TENANT,
    OF_TENANT_OR_NOBODY,
    TEXT,
    TIMESTAMPTZ,
    UUID,
    Column,
    Table,
    build_companion,
    drop_if_empty,
    every_row_visible,
    exists,
    log,
    role_exists,
    scalar,
    temporary_tables_last,
    varchar,
)

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Build the tables, the triggers and the indexes."""
    remove_orphans()
    for table in (DETAILS, GROUPS, EVENTS, RETENTION):
        build_companion(table)
    number_events()
    open_originals()
    build_triggers()
    build_indexes()
    count_again()
    adopt_rows()


def downgrade() -> None:
    """Drop the triggers and indexes, and the tables that hold no row."""
    drop_triggers()
    drop_indexes()
    close_originals()
    # Nothing would remove its rows before those that it refers to.
    op.execute(f"ALTER TABLE {DETAILS.name} DROP CONSTRAINT IF EXISTS {_REFERENCE}")
    for table in (DETAILS, GROUPS, EVENTS, RETENTION):
        drop_if_empty(table)


# --- What is built --------------------------------------------------------------------------------


_REFERENCE = "fk_worker_failed_job_details_failed_job"

DETAILS = Table(
    "worker_failed_job_details",
    columns={
        "failed_job_id": Column(UUID),
        "tenant_id": Column(UUID, null=True),
        "fingerprint": Column(varchar(32), null=True),
        # Of the row, so that one index finds the rows of a group by both, in order.
        "status": Column(varchar(50)),
        "failed_at": Column(TIMESTAMPTZ),
        "failures": Column(INTEGER, default="1"),
        "attempts": Column(JSONB, null=True),
        "forgotten_at": Column(TIMESTAMPTZ, null=True),
    },
    primary_key="(failed_job_id)",
    constraints={
        # No cascade: the trigger removes it, and must see it first.
        _REFERENCE: ("FOREIGN KEY (failed_job_id) REFERENCES worker_failed_jobs (id) DEFERRABLE INITIALLY DEFERRED"),
    },
    indexes={"idx_worker_failed_job_details_group": "(fingerprint, status, failed_at)"},
    app_user="SELECT, INSERT, UPDATE, DELETE",
    tenant=OF_TENANT_OR_NOBODY,
)

_COUNT = Column(BIGINT, default="0")
# Tenants write the counts of theirs, and operators add up everybody's: none may be so large that the sum of all is no
# bigint, or a time that no program can hold.
_COUNTS = ("failures", "pending", "in_progress", "resolved", "abandoned")
_TIMES = ("first_seen", "last_seen", "resolved_at", "regressed_at")

GROUPS = Table(
    "worker_failed_job_groups",
    columns={
        "id": Column(UUID, default="gen_random_uuid()"),
        "tenant_id": Column(UUID, null=True),
        "fingerprint": Column(varchar(32)),
        "task_name": Column(varchar(255)),
        "queue": Column(varchar(100), null=True),
        "error_type": Column(varchar(100)),
        "exception_class": Column(varchar(255)),
        "title": Column(TEXT, null=True),
        "place": Column(TEXT, null=True),
        "first_seen": Column(TIMESTAMPTZ),
        "last_seen": Column(TIMESTAMPTZ),
        "failures": _COUNT,
        "pending": _COUNT,
        "in_progress": _COUNT,
        "resolved": _COUNT,
        "abandoned": _COUNT,
        "sample_id": Column(UUID, null=True),
        "resolved_at": Column(TIMESTAMPTZ, null=True),
        "regressed_at": Column(TIMESTAMPTZ, null=True),
        "regressions": Column(INTEGER, default="0"),
    },
    primary_key="(id)",
    constraints={
        "ck_worker_failed_job_groups_counts": "CHECK ("
        + " AND ".join(f"{count} BETWEEN -1000000000000 AND 1000000000000" for count in _COUNTS)
        + " AND regressions BETWEEN 0 AND 1000000000)",
        "ck_worker_failed_job_groups_times": "CHECK ("
        + " AND ".join(f"{time} BETWEEN '0001-01-02 00:00:00+00' AND '9999-12-30 00:00:00+00'" for time in _TIMES)
        + ")",
        "uq_worker_failed_job_groups_fingerprint": "UNIQUE NULLS NOT DISTINCT (fingerprint, tenant_id)",
    },
    indexes={"idx_worker_failed_job_groups_tenant_id": "(tenant_id)"},
    app_user="SELECT, INSERT, UPDATE, DELETE",
    tenant=OF_TENANT_OR_NOBODY,
)

# No reference to the row, which it outlives. Tenants add to it (number_events says what) and read it; nobody who is
# bound to one changes it.
EVENTS = Table(
    "worker_failed_job_events",
    columns={
        "id": Column(BIGINT),
        "failed_job_id": Column(UUID, null=True),
        "tenant_id": Column(UUID, null=True),
        "event": Column(varchar(30)),
        "changed_by": Column(TEXT),
        "database_user": Column(TEXT, default="SESSION_USER"),
        "reason": Column(TEXT, null=True),
        "before": Column(JSONB, null=True),
        "after": Column(JSONB, null=True),
        "happened_at": NOW,
    },
    primary_key="(id)",
    constraints={},
    indexes={
        "idx_worker_failed_job_events_failed_job_id": "(failed_job_id)",
        "idx_worker_failed_job_events_tenant_id": "(tenant_id, happened_at)",
        "idx_worker_failed_job_events_happened_at": "(happened_at)",
    },
    app_user="SELECT",
    tenant=OF_TENANT_OR_NOBODY,
)
# Not the number, because whoever took those that come next would keep all others from recording anything; and not whom
# Postgres knew it as.
_SAID = "failed_job_id, tenant_id, event, changed_by, reason, before, after, happened_at"

RETENTION = Table(
    "worker_failed_job_retention",
    columns={
        "id": Column(UUID, default="gen_random_uuid()"),
        "tenant_id": Column(UUID, null=True),
        "subject": Column(varchar(20)),
        "keep_days": Column(INTEGER, null=True),
        "changed_by": Column(TEXT),
        "changed_at": NOW,
    },
    primary_key="(id)",
    constraints={
        "ck_worker_failed_job_retention_keep_days": "CHECK (keep_days >= 0)",
        "ck_worker_failed_job_retention_subject": (
            "CHECK (subject IN ('pending', 'in_progress', 'resolved', 'abandoned', 'payload', 'events'))"
        ),
        "uq_worker_failed_job_retention_subject": "UNIQUE NULLS NOT DISTINCT (tenant_id, subject)",
    },
    indexes={},
    app_user="SELECT",
    # What holds for all, too.
    tenant=f"tenant_id IS NULL OR {OF_TENANT}",
)


# As revision 0001 built it; here for its name alone.
FAILED_JOBS = Table(
    "worker_failed_jobs", columns={}, primary_key="(id)", constraints={}, indexes={}, app_user="", tenant=""
)


def number_events() -> None:
    """Let Postgres number the events: whoever may insert needs no right to the sequence of an identity.

    Tenants say what happened, and nothing that Postgres knows better.
    """
    if scalar(
        "SELECT attidentity = '' FROM pg_attribute WHERE attrelid = to_regclass(:t) AND attname = 'id'", t=EVENTS.name
    ):
        op.execute(f"ALTER TABLE {EVENTS.name} ALTER COLUMN id ADD GENERATED BY DEFAULT AS IDENTITY")
    if role_exists("app_user"):
        op.execute(f"GRANT INSERT ({_SAID}) ON {EVENTS.name} TO app_user")
    if role_exists("app_operator"):
        # For pg_dump.
        sequence = scalar("SELECT pg_get_serial_sequence(:t, 'id')", t=EVENTS.name)
        op.execute(f"GRANT SELECT ON SEQUENCE {sequence} TO app_operator")


ORIGINALS = "worker_failed_job_originals"


def open_originals() -> None:
    """Let tenants remove originals of theirs, which they still cannot read: only see that there is one."""
    if role_exists("app_user"):
        op.execute(f"GRANT DELETE, SELECT (failed_job_id, tenant_id) ON {ORIGINALS} TO app_user")


def close_originals() -> None:
    """Let tenants add originals, and nothing else."""
    if role_exists("app_user") and exists(ORIGINALS):
        op.execute(f"REVOKE DELETE, SELECT (failed_job_id, tenant_id) ON {ORIGINALS} FROM app_user")


# --- Triggers -------------------------------------------------------------------------------------

_STATUSES = ("pending", "in_progress", "resolved", "abandoned")
_WHO = "coalesce(nullif(current_setting('app.changed_by', true), ''), session_user)"
_WHY = "nullif(current_setting('app.change_reason', true), '')"
_EVENT = "nullif(current_setting('app.change_event', true), '')"
# Arguments may have to be forgotten, and a traceback is long.
_HIDDEN = "'{traceback,task_args,task_kwargs}'::text[]"

_CHANGED = f"""
CREATE OR REPLACE FUNCTION worker_failed_jobs_changed() RETURNS trigger
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    INSERT INTO worker_failed_job_events (failed_job_id, tenant_id, event, changed_by, reason, before, after)
    SELECT
        is_now.id,
        is_now.tenant_id,
        coalesce({_EVENT}, CASE
            WHEN is_now.status = was.status THEN CASE
                WHEN is_now.failed_at <> was.failed_at THEN 'failed_again'
                WHEN is_now.remediation_notes IS DISTINCT FROM was.remediation_notes THEN 'noted'
                ELSE 'edited'
            END
            WHEN is_now.status = 'in_progress' THEN 'claimed'
            WHEN is_now.status = 'resolved' THEN 'resolved'
            WHEN is_now.status = 'abandoned' THEN 'abandoned'
            WHEN is_now.failed_at <> was.failed_at THEN 'failed_again'
            WHEN was.status = 'in_progress' THEN 'released'
            ELSE 'reopened'
        END),
        {_WHO},
        {_WHY},
        difference.before,
        difference.after
    FROM changed_from was
    JOIN changed_to is_now USING (id)
    CROSS JOIN LATERAL (
        SELECT jsonb_object_agg(key, one.value) AS before, jsonb_object_agg(key, other.value) AS after
        FROM jsonb_each(to_jsonb(was) - {_HIDDEN}) one
        JOIN jsonb_each(to_jsonb(is_now) - {_HIDDEN}) other USING (key)
        WHERE one.value IS DISTINCT FROM other.value
    ) difference
    WHERE difference.before IS NOT NULL
       OR is_now.traceback IS DISTINCT FROM was.traceback
       OR is_now.task_args IS DISTINCT FROM was.task_args
       OR is_now.task_kwargs IS DISTINCT FROM was.task_kwargs
    ORDER BY is_now.id;

    -- Handed to another tenant: what stands beside the row goes with it, and so does its count.
    IF EXISTS (
        SELECT FROM changed_from was JOIN changed_to is_now USING (id)
        WHERE was.tenant_id IS DISTINCT FROM is_now.tenant_id
    ) THEN
        UPDATE worker_failed_job_deliveries own SET tenant_id = is_now.tenant_id FROM changed_to is_now
        WHERE own.failed_job_id = is_now.id AND own.tenant_id IS DISTINCT FROM is_now.tenant_id;
        UPDATE worker_failed_job_originals own SET tenant_id = is_now.tenant_id FROM changed_to is_now
        WHERE own.failed_job_id = is_now.id AND own.tenant_id IS DISTINCT FROM is_now.tenant_id;
        WITH moved AS MATERIALIZED (
            SELECT was.tenant_id AS from_tenant, is_now.tenant_id AS to_tenant, details.fingerprint, {
    ", ".join(f"count(*) FILTER (WHERE was.status = '{s}') AS {s}" for s in _STATUSES)
}, max(is_now.failed_at) AS last_seen, (array_agg(is_now.id ORDER BY is_now.failed_at DESC))[1] AS sample_id
            FROM changed_from was
            JOIN changed_to is_now USING (id)
            JOIN worker_failed_job_details details ON details.failed_job_id = is_now.id
            WHERE was.tenant_id IS DISTINCT FROM is_now.tenant_id AND details.fingerprint IS NOT NULL
            GROUP BY 1, 2, 3
        ),
        left_behind AS (
            UPDATE worker_failed_job_groups own SET {", ".join(f"{s} = own.{s} - less.{s}" for s in _STATUSES)}
            FROM (
                SELECT from_tenant, fingerprint, {", ".join(f"sum({s}) AS {s}" for s in _STATUSES)}
                FROM moved GROUP BY 1, 2
            ) less
            WHERE own.fingerprint = less.fingerprint
              AND (own.tenant_id = less.from_tenant OR (own.tenant_id IS NULL AND less.from_tenant IS NULL))
        )
        INSERT INTO worker_failed_job_groups AS known (
            tenant_id, fingerprint, task_name, queue, error_type, exception_class, title, place,
            first_seen, last_seen, failures, {", ".join(_STATUSES)}, sample_id
        )
        SELECT
            moved.to_tenant, moved.fingerprint, max(like_it.task_name), max(like_it.queue), max(like_it.error_type),
            max(like_it.exception_class), max(like_it.title), max(like_it.place),
            max(moved.last_seen), max(moved.last_seen), sum({" + ".join(f"moved.{s}" for s in _STATUSES)}),
            {", ".join(f"sum(moved.{s})" for s in _STATUSES)},
            (array_agg(moved.sample_id))[1]
        FROM moved
        JOIN worker_failed_job_groups like_it
          ON like_it.fingerprint = moved.fingerprint
            AND (like_it.tenant_id = moved.from_tenant OR (like_it.tenant_id IS NULL AND moved.from_tenant IS NULL))
        GROUP BY moved.to_tenant, moved.fingerprint
        ON CONFLICT (fingerprint, tenant_id) DO UPDATE SET
            last_seen = greatest(known.last_seen, excluded.last_seen),
            failures = known.failures + excluded.failures,
            {", ".join(f"{s} = known.{s} + excluded.{s}" for s in _STATUSES)},
            resolved_at = CASE WHEN excluded.pending + excluded.in_progress > 0 THEN NULL ELSE known.resolved_at END;
        UPDATE worker_failed_job_details details SET tenant_id = is_now.tenant_id FROM changed_to is_now
        WHERE details.failed_job_id = is_now.id AND details.tenant_id IS DISTINCT FROM is_now.tenant_id;
    END IF;

    UPDATE worker_failed_job_details details SET status = is_now.status, failed_at = is_now.failed_at
    FROM changed_to is_now
    WHERE details.failed_job_id = is_now.id
      AND (details.status <> is_now.status OR details.failed_at <> is_now.failed_at);

    UPDATE worker_failed_job_groups own SET
        {", ".join(f"{s} = own.{s} + moved.{s}" for s in _STATUSES)},
        resolved_at = CASE
            WHEN own.pending + moved.pending + own.in_progress + moved.in_progress > 0 THEN NULL
            WHEN moved.resolved > 0 THEN now()
            ELSE own.resolved_at
        END
    FROM (
        SELECT details.tenant_id, details.fingerprint, {
    ", ".join(
        f"count(*) FILTER (WHERE is_now.status = '{s}') - count(*) FILTER (WHERE was.status = '{s}') AS {s}"
        for s in _STATUSES
    )
}
        FROM changed_from was
        JOIN changed_to is_now USING (id)
        JOIN worker_failed_job_details details ON details.failed_job_id = is_now.id
        WHERE is_now.status <> was.status AND details.fingerprint IS NOT NULL
        GROUP BY details.tenant_id, details.fingerprint
    ) moved
    WHERE own.fingerprint = moved.fingerprint
      AND (own.tenant_id = moved.tenant_id OR (own.tenant_id IS NULL AND moved.tenant_id IS NULL));
    RETURN NULL;
END $$
"""

_REMOVED = f"""
CREATE OR REPLACE FUNCTION worker_failed_jobs_removed() RETURNS trigger
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    INSERT INTO worker_failed_job_events (failed_job_id, tenant_id, event, changed_by, reason, before)
    SELECT id, tenant_id, coalesce({_EVENT}, 'purged'), {_WHO}, {_WHY}, to_jsonb(gone) - {_HIDDEN} - 'error_message'
    FROM gone ORDER BY id;

    WITH removed AS (
        DELETE FROM worker_failed_job_details details USING gone WHERE details.failed_job_id = gone.id
        RETURNING details.tenant_id, details.fingerprint, gone.status
    )
    UPDATE worker_failed_job_groups own SET {", ".join(f"{s} = own.{s} - less.{s}" for s in _STATUSES)}
    FROM (
        SELECT tenant_id, fingerprint, {", ".join(f"count(*) FILTER (WHERE status = '{s}') AS {s}" for s in _STATUSES)}
        FROM removed WHERE fingerprint IS NOT NULL GROUP BY tenant_id, fingerprint
    ) less
    WHERE own.fingerprint = less.fingerprint
      AND (own.tenant_id = less.tenant_id OR (own.tenant_id IS NULL AND less.tenant_id IS NULL));
    RETURN NULL;
END $$
"""


# For rows that something else than our workers put there: the Celery system, which knew no fingerprints, or a person.
# From what the row says, coarser than ours, which know the exception.
_FINGERPRINT = r"""
CREATE OR REPLACE FUNCTION worker_failed_job_fingerprint(task_name text, exception_class text, error_message text)
RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT md5(concat_ws(E'\n', 'of the row', task_name, exception_class, worker_failed_job_title(error_message)))
$$
"""
_TITLE = r"""
CREATE OR REPLACE FUNCTION worker_failed_job_title(error_message text)
RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT left(regexp_replace(
        split_part(ltrim(left(error_message, 1000), E' \r\n\t'), E'\n', 1),
        $re$'[^']*'|"[^"]*"|\m[[:alnum:]_-]*[0-9][[:alnum:]_-]*$re$, '*', 'g'
    ), 200)
$$
"""


def _describe(source: str) -> str:
    """Return what gives rows of ``source`` that have no details their details, a group, and the begin of a history."""
    return f"""
    WITH undescribed AS MATERIALIZED (
        SELECT source.*,
            worker_failed_job_fingerprint(task_name, exception_class, error_message) AS fingerprint,
            worker_failed_job_title(error_message) AS title
        FROM {source} source
        WHERE NOT EXISTS (SELECT FROM worker_failed_job_details details WHERE details.failed_job_id = source.id)
    ),
    detailed AS (
        INSERT INTO worker_failed_job_details (failed_job_id, tenant_id, fingerprint, status, failed_at)
        SELECT id, tenant_id, fingerprint, status, failed_at FROM undescribed
    ),
    told AS (
        INSERT INTO worker_failed_job_events (failed_job_id, tenant_id, event, changed_by, reason, after, happened_at)
        SELECT id, tenant_id, coalesce({_EVENT}, 'captured'), {_WHO}, {_WHY}, jsonb_build_object(
            'status', status, 'task_name', task_name, 'error_type', error_type,
            'exception_class', exception_class, 'retry_count', retry_count
        ), failed_at
        FROM undescribed
    )
    INSERT INTO worker_failed_job_groups AS known (
        tenant_id, fingerprint, task_name, queue, error_type, exception_class, title, first_seen, last_seen,
        failures, {", ".join(_STATUSES)}, sample_id
    )
    SELECT
        tenant_id, fingerprint, max(task_name), max(queue), max(error_type), max(exception_class), max(title),
        min(failed_at), max(failed_at),
        count(*), {", ".join(f"count(*) FILTER (WHERE status = '{s}')" for s in _STATUSES)},
        (array_agg(id ORDER BY failed_at DESC))[1]
    FROM undescribed GROUP BY tenant_id, fingerprint ORDER BY tenant_id, fingerprint
    ON CONFLICT (fingerprint, tenant_id) DO UPDATE SET
        first_seen = least(known.first_seen, excluded.first_seen),
        last_seen = greatest(known.last_seen, excluded.last_seen),
        failures = known.failures + excluded.failures,
        {", ".join(f"{s} = known.{s} + excluded.{s}" for s in _STATUSES)},
        sample_id = excluded.sample_id,
        regressed_at = CASE WHEN known.resolved_at IS NULL THEN known.regressed_at ELSE excluded.last_seen END,
        regressions = known.regressions + CASE WHEN known.resolved_at IS NULL THEN 0 ELSE 1 END,
        resolved_at = NULL
    """


_ADDED = f"""
CREATE OR REPLACE FUNCTION worker_failed_jobs_added() RETURNS trigger
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    -- Our workers describe theirs in the same statement, before this.
    IF EXISTS (
        SELECT FROM added
        WHERE NOT EXISTS (SELECT FROM worker_failed_job_details details WHERE details.failed_job_id = added.id)
    ) THEN
        {_describe("added")};
    END IF;
    RETURN NULL;
END $$
"""


def build_triggers() -> None:
    """Keep history and counts, whoever changes or removes a row."""
    for function in (_TITLE, _FINGERPRINT, _ADDED, _CHANGED, _REMOVED):
        # A colon before a word would be a parameter.
        op.get_bind().exec_driver_sql(function)
    for name in ("worker_failed_jobs_added", "worker_failed_jobs_changed", "worker_failed_jobs_removed"):
        temporary_tables_last(name)
    drop_triggers(functions=False)
    op.execute(
        "CREATE TRIGGER worker_failed_jobs_added AFTER INSERT ON worker_failed_jobs"
        " REFERENCING NEW TABLE AS added"
        " FOR EACH STATEMENT EXECUTE FUNCTION worker_failed_jobs_added()"
    )
    op.execute(
        "CREATE TRIGGER worker_failed_jobs_changed AFTER UPDATE ON worker_failed_jobs"
        " REFERENCING OLD TABLE AS changed_from NEW TABLE AS changed_to"
        " FOR EACH STATEMENT EXECUTE FUNCTION worker_failed_jobs_changed()"
    )
    op.execute(
        "CREATE TRIGGER worker_failed_jobs_removed AFTER DELETE ON worker_failed_jobs"
        " REFERENCING OLD TABLE AS gone"
        " FOR EACH STATEMENT EXECUTE FUNCTION worker_failed_jobs_removed()"
    )


def drop_triggers(*, functions: bool = True) -> None:
    """Drop them, and what they call."""
    for name in ("worker_failed_jobs_added", "worker_failed_jobs_changed", "worker_failed_jobs_removed"):
        op.execute(f"DROP TRIGGER IF EXISTS {name} ON worker_failed_jobs")
        if functions:
            op.execute(f"DROP FUNCTION IF EXISTS {name}()")
    if functions:
        op.execute("DROP FUNCTION IF EXISTS worker_failed_job_fingerprint(text, text, text)")
        op.execute("DROP FUNCTION IF EXISTS worker_failed_job_title(text)")


def adopt_rows() -> None:
    """Describe the rows that are there."""
    with every_row_visible(FAILED_JOBS):
        op.get_bind().exec_driver_sql(_describe("worker_failed_jobs"))
    # What is checked at the end would be in the way of a revision that alters the table after this one.
    op.execute("SET CONSTRAINTS ALL IMMEDIATE")


def remove_orphans() -> None:
    """Remove what an earlier downgrade left of rows that have gone since."""
    if exists(DETAILS.name):
        with every_row_visible(DETAILS), every_row_visible(FAILED_JOBS):
            op.execute(
                f"DELETE FROM {DETAILS.name} WHERE NOT EXISTS"
                " (SELECT FROM worker_failed_jobs job WHERE job.id = failed_job_id)"
            )


def count_again() -> None:
    """Count each group's rows: while this revision was not there, they changed without it."""
    with every_row_visible(DETAILS), every_row_visible(GROUPS), every_row_visible(FAILED_JOBS):
        op.execute(
            """
            UPDATE worker_failed_job_details details SET status = job.status, failed_at = job.failed_at
            FROM worker_failed_jobs job
            WHERE job.id = failed_job_id AND (details.status <> job.status OR details.failed_at <> job.failed_at)
            """
        )
        op.execute(
            f"""
            UPDATE worker_failed_job_groups own SET {", ".join(f"{s} = coalesce(counted.{s}, 0)" for s in _STATUSES)}
            FROM worker_failed_job_groups same LEFT JOIN (
                SELECT tenant_id, fingerprint, {
                ", ".join(f"count(*) FILTER (WHERE status = '{s}') AS {s}" for s in _STATUSES)
            }
                FROM worker_failed_job_details GROUP BY tenant_id, fingerprint
            ) counted
            ON counted.fingerprint = same.fingerprint AND counted.tenant_id IS NOT DISTINCT FROM same.tenant_id
            WHERE same.id = own.id
            """
        )


# --- Indexes --------------------------------------------------------------------------------------

#: On the canonical table, each for a filter; tests/benchmarks/understanding.py says what they bring and cost.
_INDEXES = {
    "idx_worker_failed_jobs_correlation_id": "(correlation_id)",
    "idx_worker_failed_jobs_error_type": "(error_type, failed_at)",
    "idx_worker_failed_jobs_exception_class": "(exception_class, failed_at)",
}
#: Of revision 0001, on one column each; with the time they give its rows in order.
_LENGTHENED = {
    "idx_worker_failed_jobs_task_name": "task_name",
    "idx_worker_failed_jobs_tenant_id": "tenant_id",
}
_TEXT = (
    "(error_message || ' ' || coalesce(traceback, '') || ' ' || coalesce(task_args::text, '') || ' '"
    " || coalesce(task_kwargs::text, ''))"
)


def build_indexes() -> None:
    """Index the canonical table for what it is searched by."""
    for name, columns in _INDEXES.items():
        op.execute(f"CREATE INDEX IF NOT EXISTS {name} ON worker_failed_jobs {columns}")
    for name, column in _LENGTHENED.items():
        op.execute(f"DROP INDEX IF EXISTS {name}")
        op.execute(f"CREATE INDEX {name} ON worker_failed_jobs ({column}, failed_at)")
    # What people did, among the failures themselves, which are not in it and so do not pay for it; by whom, and what.
    for name, columns in (("audit", "(id)"), ("changed_by", "(changed_by, id)"), ("event", "(event, id)")):
        op.execute(
            f"CREATE INDEX IF NOT EXISTS idx_worker_failed_job_events_{name} ON {EVENTS.name} {columns}"
            " WHERE event NOT IN ('captured', 'failed_again')"
        )
    # Trusted: whoever may create in the database may have it.
    # https://www.postgresql.org/docs/current/pgtrgm.html
    op.execute(
        """
        DO $$ BEGIN
            CREATE EXTENSION IF NOT EXISTS pg_trgm;
        EXCEPTION
            WHEN insufficient_privilege OR undefined_file OR feature_not_supported OR unique_violation THEN NULL;
        END $$
        """
    )
    if scalar("SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'pg_trgm')"):
        op.get_bind().exec_driver_sql(
            "CREATE INDEX IF NOT EXISTS idx_worker_failed_jobs_text ON worker_failed_jobs"
            f" USING gin ({_TEXT} gin_trgm_ops)"
        )
    else:
        log.warning("extension pg_trgm cannot be had here: text is searched without an index")


def drop_indexes() -> None:
    """Return the indexes to what they were."""
    for name in (*_INDEXES, "idx_worker_failed_jobs_text"):
        op.execute(f"DROP INDEX IF EXISTS {name}")
    if exists("worker_failed_jobs"):
        for name, column in _LENGTHENED.items():
            op.execute(f"DROP INDEX IF EXISTS {name}")
            op.execute(f"CREATE INDEX {name} ON worker_failed_jobs ({column})")
