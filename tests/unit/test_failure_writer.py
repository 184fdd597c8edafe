"""The first failure of a process: what it needs is imported before its time runs."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import UUID

import pytest

from db.failure_writer import FailureWriter, PostgresAway
from db.failures import Ending, Success

ENDING = Success("d", "t", "a", None, None, UUID(int=1), UUID(int=2), datetime.now(UTC))


def test_preparing_takes_none_of_the_time_that_writing_may() -> None:
    written: list[Ending] = []
    steps: list[str] = []

    def prepare() -> None:
        # Longer than is waited for.
        threading.Event().wait(1.5)
        steps.append("prepared")

    def record_all(endings: Sequence[Ending]) -> None:
        steps.append("written")
        written.extend(endings)

    writer = FailureWriter(record_all, wait=1.0, prepare=prepare)
    writer.record(ENDING)
    writer.record(ENDING)
    assert written == [ENDING, ENDING]
    assert steps == ["prepared", "written", "written"]


def test_what_cannot_be_imported_is_as_good_as_away_and_tried_again() -> None:
    problems = [ImportError("no such library")]
    written: list[Ending] = []

    def prepare() -> None:
        if problems:
            raise problems.pop()

    writer = FailureWriter(written.extend, prepare=prepare)
    with pytest.raises(PostgresAway, match="ImportError: no such library"):
        writer.record(ENDING)
    writer.record(ENDING)
    assert written == [ENDING]
