"""The pages, each with its forms, in a module of its own."""

from __future__ import annotations

from worker.console.pages import close_many, failure, failure_actions, failure_edit, failures, groups, login, overview

#: In the order in which routes are tried.
ALL = (login, overview, groups, failures, close_many, failure, failure_actions, failure_edit)
