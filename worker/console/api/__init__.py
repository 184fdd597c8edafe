"""``/api/v1``: what the pages show and do, as JSON, each resource in a module of its own."""

from __future__ import annotations

from worker.console.api import (
    audit,
    failures,
    groups,
    many,
    one,
    openapi,
    queues,
    replays,
    stats,
    tenants,
    workers,
)

#: In the order in which routes are tried.
ALL = (failures, many, one, groups, stats, replays, queues, workers, tenants, audit, openapi)
