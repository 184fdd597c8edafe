"""The pages, each with its forms, in a module of its own."""

from __future__ import annotations

from worker.console.pages import failure, failure_actions, failures, login, overview

#: In the order in which routes are tried.
ALL = (login, overview, failures, failure, failure_actions)
