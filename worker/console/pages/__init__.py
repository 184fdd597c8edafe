"""The pages, each with its forms, in a module of its own."""

from __future__ import annotations

from worker.console.pages import audit, failure, failure_actions, failures, groups, login, overview, tenants

#: In the order in which routes are tried.
ALL = (login, overview, groups, failures, failure, failure_actions, tenants, audit)
