from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.deployment import Deployment
from tests.servers import Database


@pytest.fixture
def deployment(database: Database, redis_url: str, tmp_path: Path) -> Iterator[Deployment]:
    """Migrated servers, and a way to start processes on them that end with the test."""
    with ExitStack() as stack:
        yield Deployment(database, redis_url, tmp_path, stack)


@pytest.fixture
def deployment_on(tmp_path: Path) -> Iterator[Callable[[Database, str], Deployment]]:
    """Make a deployment on servers of the test's choice."""
    with ExitStack() as stack:
        yield lambda database, redis_url: Deployment(database, redis_url, tmp_path, stack)
