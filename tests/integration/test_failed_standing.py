"""How much waits for somebody: few numbers, the same as those of the long list."""

from __future__ import annotations

import pytest
from sqlalchemy.orm import Session

from db.failed import Filter, Standing, get, standing, stats
from db.session import operator_transaction, transaction
from db.tenancy import tenant_context
from tests.integration.failed_rows import START, TENANTS, record_at_random
from tests.servers import Database


def as_stats(session: Session, found: Standing) -> None:
    """See that both count the same."""
    expected = stats(session, Filter(), now=START)
    assert (found.pending, found.in_progress) == (expected.by_status["pending"], expected.by_status["in_progress"])
    assert (found.open_groups, found.regressed_groups) == (expected.open_groups, expected.regressed_groups)
    assert found.oldest == expected.oldest_pending
    assert found.oldest_id is not None
    oldest = get(session, found.oldest_id)
    assert oldest is not None
    assert (oldest.failed_at, oldest.status) == (found.oldest, "pending")


@pytest.mark.parametrize("seed", [1, 2])
def test_it_is_what_stats_say_whoever_looks(database: Database, seed: int) -> None:
    record_at_random(database, seed)
    with operator_transaction() as session:
        everything = standing(session)
        as_stats(session, everything)
    assert everything.open == everything.pending + everything.in_progress > 0
    assert everything.groups >= everything.open_groups > 0
    for tenant in (one for one in TENANTS if one is not None):
        with tenant_context(tenant), transaction() as session:
            own = standing(session)
            as_stats(session, own)
        assert own.open < everything.open


def test_of_nothing_it_is_nothing(database: Database) -> None:
    with operator_transaction() as session:
        assert standing(session) == Standing(0, 0, 0, 0, 0, None, None)
