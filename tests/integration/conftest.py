from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.integration.command_line import CommandLine
from tests.integration.console import Console
from tests.integration.nothing_lost import Side
from tests.integration.replaying import Deployment, deployed
from tests.servers import Database


@pytest.fixture
def side(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[str], Side], str], Side]]:
    """Make a side of ``stock`` or ``ours`` on a Redis, closed with the test; Dramatiq waits little after errors."""
    monkeypatch.setattr("dramatiq.worker.CONSUMER_RESTART_DELAY_SECS", 0.05)
    monkeypatch.setattr("dramatiq.worker.POST_PROCESS_MESSAGE_RETRY_DELAY_SECS", 0.05)
    with ExitStack() as stack:

        def make(kind: Callable[[str], Side], url: str) -> Side:
            made = kind(url)
            stack.callback(made.close)
            return made

        yield make


@pytest.fixture
def worker(database: Database) -> CommandLine:
    """The command line, on the test's database."""
    return CommandLine(database)


@pytest.fixture
def deployment(database: Database, redis_url: str) -> Iterator[Deployment]:
    """Workers, runners of replays, and an actor that fails when it is told to."""
    with deployed(database, redis_url) as deployment:
        yield deployment


@pytest.fixture
def console(database: Database, redis_url: str) -> Console:
    """The operations console on the test's servers, with a token for each role that is asked for."""
    return Console(database, redis_url)
