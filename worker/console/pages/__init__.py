"""The pages, each with its forms, in a module of its own."""

from __future__ import annotations

from worker.console.pages import failure, failure_actions, failure_edit, failures, login

#: In the order in which routes are tried.
ALL = (login, failures, failure, failure_actions, failure_edit)
