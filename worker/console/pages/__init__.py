"""The pages, each with its forms, in a module of its own."""

from __future__ import annotations

from worker.console.pages import audit, failure, failures, login, overview, tenants

#: In the order in which routes are tried.
ALL = (login, overview, failures, failure, tenants, audit)
