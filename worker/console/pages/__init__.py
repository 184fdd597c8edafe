"""The pages, each with its forms, in a module of its own."""

from __future__ import annotations

from worker.console.pages import failures, groups, login, new_replay, replays

#: In the order in which routes are tried: what is called new is no replay's id.
ALL = (login, failures, groups, new_replay, replays)
