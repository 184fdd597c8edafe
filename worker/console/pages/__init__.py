"""The pages, each with its forms, in a module of its own."""

from __future__ import annotations

from worker.console.pages import (
    audit,
    failure,
    failure_actions,
    failure_edit,
    failures,
    groups,
    login,
    new_replay,
    overview,
    replays,
    tenants,
)

#: In the order in which routes are tried: what is called new is no replay's id.
ALL = (
    login,
    overview,
    groups,
    failures,
    failure,
    failure_actions,
    failure_edit,
    new_replay,
    replays,
    tenants,
    audit,
)
