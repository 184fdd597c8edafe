"""Finds, explains and closes failed jobs: for the command line, the console, and an application's own admin.

Functions that look take a session: :func:`db.session.operator_transaction` gives one that sees every tenant,
:func:`db.session.transaction` one that sees the tenant of :func:`db.tenancy.tenant_context` and no other. Functions
that change take what gives sessions, because they use several, one after the other.
"""

from __future__ import annotations

from db.failed.actions import Begin, Moved, abandon, note, reopen, resolve
from db.failed.by_tenant import TenantFailures, TenantPage, failures_by_tenant
from db.failed.events import Event, audit, history, write_event
from db.failed.filters import Filter, InvalidFilter, moment
from db.failed.groups import (
    Group,
    Share,
    Touched,
    find_groups,
    get_group,
    hours_of_group,
    largest_groups,
    tenants_of_group,
)
from db.failed.rates import FailureRates, Series, failures_per_minute
from db.failed.search import (
    FailedJob,
    FailedJobSummary,
    Page,
    beyond,
    chain,
    count,
    count_up_to,
    find,
    get,
    ids_beginning,
    iterate,
)
from db.failed.standing import Standing, standing
from db.failed.stats import Count, Stats, stats
from db.failed.statuses import MOVES, STATUSES, Status, sources

__all__ = [
    "MOVES",
    "STATUSES",
    "Begin",
    "Count",
    "Event",
    "FailedJob",
    "FailedJobSummary",
    "FailureRates",
    "Filter",
    "Group",
    "InvalidFilter",
    "Moved",
    "Page",
    "Series",
    "Share",
    "Standing",
    "Stats",
    "Status",
    "TenantFailures",
    "TenantPage",
    "Touched",
    "abandon",
    "audit",
    "beyond",
    "chain",
    "count",
    "count_up_to",
    "failures_by_tenant",
    "failures_per_minute",
    "find",
    "find_groups",
    "get",
    "get_group",
    "history",
    "hours_of_group",
    "ids_beginning",
    "iterate",
    "largest_groups",
    "moment",
    "note",
    "reopen",
    "resolve",
    "sources",
    "standing",
    "stats",
    "tenants_of_group",
    "write_event",
]
