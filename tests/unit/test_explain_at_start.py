"""What a worker of ``llm`` says at its start of why nobody can be asked."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from loguru import logger

from worker.explain import at_start
from worker.explain.at_start import ACTOR, MissingKey


@pytest.fixture
def said() -> Iterator[list[str]]:
    lines: list[str] = []
    sink = logger.add(lambda line: lines.append(str(line).strip()), format="{message}")
    yield lines
    logger.remove(sink)


@pytest.mark.parametrize(
    ("has_key", "installed", "queues", "expected"),
    [
        (True, True, None, []),
        (False, True, None, [f"LLM_API_KEY is not set: {ACTOR} will fail with configuration_error"]),
        (
            True,
            False,
            {"llm"},
            [f"openai is not installed (pip install 'dramaturg[llm]'): {ACTOR} will fail with configuration_error"],
        ),
        # Whoever has no key has no use for it.
        (False, False, None, [f"LLM_API_KEY is not set: {ACTOR} will fail with configuration_error"]),
        (True, False, {"housekeeping"}, []),
    ],
)
def test_what_is_missing_is_said_once(
    monkeypatch: pytest.MonkeyPatch,
    said: list[str],
    has_key: bool,
    installed: bool,
    queues: set[str] | None,
    expected: list[str],
) -> None:
    monkeypatch.setattr(at_start, "modules_on_command_line", lambda: ["worker.llm"])
    monkeypatch.setattr(at_start, "find_spec", lambda _: object() if installed else None)
    broker: Any = SimpleNamespace(actors={ACTOR: None})
    worker: Any = SimpleNamespace(consumer_whitelist=queues)
    MissingKey(has_key=has_key).after_worker_boot(broker, worker)
    assert said == expected
