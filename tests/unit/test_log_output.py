"""Lines stay whole, whoever else writes, and wherever they go."""

from __future__ import annotations

import errno
import json
import logging
import multiprocessing
import os
import select
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest
from dramatiq.compat import StreamablePipe
from loguru import logger

from tests.logged import logging_to
from worker.logs.output import ATOMIC, Output

#: Lines that each thread and process writes; more than a pipe holds.
LINES = 60
PARENT = os.getpid()
#: Not shown with a test that fails: it is long.
QUIET = logging.getLogger("quiet")


@contextmanager
def pipe() -> Iterator[tuple[IO[bytes], IO[str]]]:
    """A pipe: the end to read from, and a stream that writes into it."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as reader, os.fdopen(writing, "w", encoding="utf-8") as stream:
        yield reader, stream


def test_of_several_processes_on_one_pipe() -> None:
    with pipe() as (reader, stream):
        children = [os.fork() for _ in range(3) if os.getpid() == PARENT]
        if os.getpid() != PARENT:
            write_and_exit(len(children), stream)
        stream.close()
        lines = reader.readlines()
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    # Two in one, or half of one, would be no JSON, or too long.
    assert max(len(line) for line in lines) <= ATOMIC
    found = Counter(tuple(json.loads(line)["message"].split()[:2]) for line in lines)
    assert found == Counter({(str(name), str(n)): 2 for name in range(1, 4) for n in range(LINES)})


def write_and_exit(name: int, stream: IO[str]) -> None:
    status = 1
    try:
        with logging_to(stream, LOG_LINE_LIMIT="9000"):
            write_lines(name)
        status = 0
    finally:
        os._exit(status)


def write_lines(name: int) -> None:
    for n in range(LINES):
        logger.info("{} {} {}", name, n, "é" * 9_000)
        QUIET.info("%s %s %s", name, n, "x" * 9_000)


def test_of_several_threads_on_dramatiqs_pipe() -> None:
    """Frames that two threads write at once are none: https://github.com/Bogdanp/dramatiq/issues/888."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    received: list[bytes] = []

    def receive() -> None:
        try:
            while True:
                received.append(receiver.recv_bytes())
        except EOFError:
            pass

    def write(name: int) -> None:
        write_lines(name)
        for n in range(LINES):
            sys.stdout.write(f"{name} {n} printed\n")

    reader = threading.Thread(target=receive)
    reader.start()
    with logging_to(StreamablePipe(sender), streams=True, LOG_LINE_LIMIT="20000"):
        threads = [threading.Thread(target=write, args=(name,)) for name in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    sender.close()
    reader.join(30)
    assert all(frame.endswith(b"}\n") for frame in received)
    assert any(len(frame) > ATOMIC for frame in received)
    found = Counter(tuple(json.loads(frame)["message"].split()[:2]) for frame in received)
    assert found == Counter({(str(name), str(n)): 3 for name in range(4) for n in range(LINES)})


def test_what_a_job_has_forked_writes_no_more_at_once_than_stays_whole() -> None:
    receiver, sender = multiprocessing.Pipe(duplex=False)
    output = Output(StreamablePipe(sender))
    assert output.limit(8_000) == 8_000
    output._pid = -1
    # Four are Dramatiq's.
    assert output.limit(8_000) == ATOMIC - 4
    receiver.close()
    sender.close()


def test_a_file_takes_more(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as stream, logging_to(stream, LOG_LINE_LIMIT="9000"):
        logger.info("x" * 20_000)
    (line,) = (tmp_path / "log").read_bytes().splitlines(keepends=True)
    assert len(line) == 9_000


class TestWhereItCannotBeWritten:
    def test_a_reader_that_has_gone(self) -> None:
        reading, writing = os.pipe()
        os.close(reading)
        with os.fdopen(writing, "w", encoding="utf-8") as stream, logging_to(stream):
            logger.info("one")
            logging.getLogger("anybody").info("two")

    def test_a_reader_that_does_not_read_is_waited_for_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        waits = 0
        poll = select.poll

        def counted() -> Any:
            nonlocal waits
            waits += 1
            return poll()

        monkeypatch.setattr(select, "poll", counted)
        with pipe() as (reader, stream):
            os.set_blocking(stream.fileno(), False)
            with logging_to(stream):
                for n in range(200):
                    logger.info("{} {}", n, "x" * 2_000)
                assert 0 < waits < 10
                full = os.read(reader.fileno(), 1 << 20)
                logger.info("again")
            stream.close()
            lines = (full + reader.read()).splitlines()
        found = [json.loads(line)["message"].split()[0] for line in lines]
        kept = len(found) - 1
        # What did not fit is lost; all that was kept is whole.
        assert 0 < kept < 200
        assert found == [*(str(n) for n in range(kept)), "again"]

    def test_a_line_that_was_torn_does_not_tear_the_next(self, monkeypatch: pytest.MonkeyPatch) -> None:
        written, full = b"", False

        def write(_: int, data: Any) -> int:
            nonlocal written, full
            if full:
                raise OSError(errno.ENOSPC, "no space left on device")
            written, full = written + bytes(data[:5]), True
            return 5

        with pipe() as (_, stream):
            output = Output(stream)
            with monkeypatch.context() as patch:
                patch.setattr(os, "write", write)
                output.write("the first\n")
            assert written == b"the f"
            full = False
            with monkeypatch.context() as patch:
                patch.setattr(os, "write", lambda _, data: len(data) if write(_, data) else 0)
                output.write("next\n")
        assert written == b"the f\nnext"

    def test_a_stream_that_is_closed(self) -> None:
        with pipe() as (_, stream):
            stream.close()
            with logging_to(stream):
                logger.info("one")

    def test_no_standard_error_at_all(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "stderr", None)
        output = Output()
        output.write("one\n")
        assert output.limit(8_000) == 8_000


def test_a_child_does_not_wait_for_a_thread_that_it_does_not_have() -> None:
    from worker.logs import output as module

    held, let_go = threading.Event(), threading.Event()

    def hold() -> None:
        with module._lock:
            held.set()
            let_go.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(30)
    with pipe() as (reader, stream):
        output = Output(stream)
        with warnings.catch_warnings():
            # Python from 3.12 on says that it is as dangerous as this test has it.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            output.write("of the child\n")
            os._exit(0)
        stream.close()
        try:
            assert reader.read() == b"of the child\n"
        finally:
            let_go.set()
            holder.join()
            os.waitpid(pid, 0)
