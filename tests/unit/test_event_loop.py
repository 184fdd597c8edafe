"""A job on the event loop has ended when its coroutine has, whenever an interrupt comes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from dramatiq.middleware import Shutdown

from middleware.event_loop import EventLoop


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    loop = EventLoop(logging.getLogger(__name__))
    loop.start(timeout=30)
    yield loop
    loop.stop()
    loop.join()


@pytest.mark.parametrize("told", [True, False], ids=["after the loop was told", "before the loop was told"])
def test_an_interrupt_as_it_starts(loop: EventLoop, monkeypatch: pytest.MonkeyPatch, told: bool) -> None:
    call = loop.loop.call_soon_threadsafe

    def interrupted(*args: object) -> None:
        monkeypatch.undo()
        if told:
            call(*args)  # type: ignore[arg-type]
        raise Shutdown

    monkeypatch.setattr(loop.loop, "call_soon_threadsafe", interrupted)
    said: list[str] = []

    async def job() -> None:
        said.append("began")
        try:
            await asyncio.sleep(3_600)
        finally:
            said.append("ended")

    with pytest.raises(Shutdown):
        loop.run_coroutine(job())
    # One that is cancelled before its first step has none.
    assert said in (["began", "ended"], [])
    assert all(task.done() for task in asyncio.all_tasks(loop.loop))


def test_one_that_others_cancel_before_its_first_step_has_not_succeeded(loop: EventLoop) -> None:
    said: list[str] = []

    async def job() -> None:
        said.append("began")

    def cancel_new(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
        task = asyncio.Task(coro, loop=loop, **options)
        task.cancel()
        return task

    loop.loop.set_task_factory(cancel_new)
    with pytest.raises(asyncio.CancelledError):
        loop.run_coroutine(job())
    assert said == []
