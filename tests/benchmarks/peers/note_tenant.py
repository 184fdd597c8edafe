"""A tenant's transaction as an application on stock Dramatiq or Celery has it: the tenant set by a statement of its
own, with SQLAlchemy and the driver that we have, and a pool of the same size.

Statements are prepared, as by default, unless ``PREPARE=no``, as it must be behind PgBouncer.
"""

import os

from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

TENANT = "00000000-0000-0000-0000-00000000000a"
SET = text("SELECT set_config('app.current_tenant_id', :tenant_id, true)")
SELECT = text("SELECT cents FROM bench_prices WHERE id = :id")
INSERT = text("INSERT INTO bench_effects (tenant_id, number, cents) VALUES (:tenant_id, :number, :cents)")

_engine = None


def transaction(number, tenant_id):
    """Read a price of the tenant's and write an effect."""
    global _engine
    if _engine is None:
        # At the first job, because a worker may be forked after this is imported.
        url = os.environ["DATABASE_URL"].replace("postgresql://", "postgresql+psycopg://")
        unprepared = {"prepare_threshold": None} if os.environ.get("PREPARE") == "no" else {}
        _engine = create_engine(url, pool_size=8, max_overflow=4, connect_args=unprepared)
    with Session(_engine) as session, session.begin():
        session.execute(SET, {"tenant_id": tenant_id})
        cents = session.execute(SELECT, {"id": number % 100}).scalar_one()
        session.execute(INSERT, {"tenant_id": tenant_id, "number": number, "cents": cents})
