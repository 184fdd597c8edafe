"""Where the outbox cannot be looked into, that is said, but not with each look."""

from __future__ import annotations

from unittest.mock import MagicMock

import pytest

from middleware import relay_outbox
from middleware.lossless_broker import LosslessBroker
from middleware.relay_outbox import RelayOutbox
from tests.logged import logging_to


@pytest.mark.parametrize(("every", "lines"), [(60.0, 1), (0.0, 5)])
def test_what_lasts_is_said_once_in_a_while(monkeypatch: pytest.MonkeyPatch, every: float, lines: int) -> None:
    keeps, looks = RelayOutbox(), list[object]()

    def look(*of: object) -> bool:
        looks.append(of)
        if len(looks) == 5:
            keeps._stop.set()
        raise ImportError("no such library")

    monkeypatch.setattr(relay_outbox, "_is_needed", look)
    monkeypatch.setattr(relay_outbox, "LOOK_EVERY", 0.0)
    monkeypatch.setattr(relay_outbox, "SAY_EVERY", every, raising=False)
    with logging_to() as log:
        keeps._begin(MagicMock(spec=LosslessBroker))
    assert len(looks) == 5
    said = [line["message"] for line in log.lines()]
    assert said == ["the outbox is not looked into: ImportError: no such library"] * lines
