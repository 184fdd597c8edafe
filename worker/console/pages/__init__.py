"""The pages, each with its forms, in a module of its own."""

from __future__ import annotations

from worker.console.pages import (
    audit,
    close_many,
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

#: In the order in which routes are tried: what is called new is no replay's id, and close no failure's.
ALL = (
    login,
    overview,
    groups,
    failures,
    close_many,
    failure,
    failure_actions,
    failure_edit,
    new_replay,
    replays,
    tenants,
    audit,
)
