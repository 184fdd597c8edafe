"""The keeper by itself, in a process of its own: it must not be forked from one with threads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from middleware.crash_evidence import how_it_ended
from middleware.keeper import why_not_kept

ROOT = Path(__file__).parents[2]

#: What Dramatiq's main process does: start a child of multiprocessing, which becomes the keeper, and see how it ends.
PROGRAM = """
import multiprocessing, os, signal, subprocess, sys, threading, time
from middleware.keeper import kept, why_not_kept

def tell(said):
    print("told", said.partition(", ")[0], flush=True)

def child(work):
    if why_not_kept():
        print("not kept:", why_not_kept(), flush=True)
        return
    keeper = os.getpid()
    with kept(tell, lambda: work == "exit amid"):
        assert os.getppid() == keeper
        if work == "signals wait":
            signal.signal(signal.SIGTERM, lambda *_: os._exit(7))
            os.kill(os.getpid(), signal.SIGTERM)
            os.write(1, b"still there\\n")
    if work == "exit":
        os._exit(3)
    if work == "signal":
        os.kill(os.getpid(), int(sys.argv[2]))
    if work == "exit amid":
        os._exit(0)
    if work == "tell fails":
        os._exit(5)

multiprocessing.set_start_method("fork")
if sys.argv[1] == "tell fails":
    def tell(said):
        raise ValueError("x")
if sys.argv[1] == "threads":
    def child(work, child=child):
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        child(work)
if sys.argv[1] == "processes":
    def child(work, child=child):
        with subprocess.Popen(["sleep", "60"]) as other:
            child(work)
            other.kill()
if sys.argv[1] == "SIGCHLD":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
process = multiprocessing.Process(target=child, args=(sys.argv[1],))
process.start()
if sys.argv[1] != "SIGCHLD":
    process.join()
    print("ended", process.exitcode)
else:
    time.sleep(2)
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="keepers are for Linux")


def run(*arguments: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout.splitlines()


def test_an_end_that_is_well_is_not_told() -> None:
    assert run("nothing") == ["ended 0"]


@pytest.mark.parametrize("number", [4, 6, 7, 8, 9, 10, 11, 14])
def test_the_keeper_ends_by_the_same_signal(number: int) -> None:
    assert run("signal", str(number)) == [f'told {{"status": {-number}', f"ended {-number}"]


def test_the_keeper_exits_with_the_same_status() -> None:
    assert run("exit") == ['told {"status": 3', "ended 3"]


def test_an_end_that_is_well_is_told_where_it_came_amid_a_message() -> None:
    assert run("exit amid") == ["told ", "ended 0"]


def test_what_cannot_be_told_changes_nothing() -> None:
    assert run("tell fails") == ["ended 5"]


def test_signals_wait_until_the_worker_has_booted() -> None:
    assert run("signals wait") == ["still there", 'told {"status": 7', "ended 7"]


def test_a_process_with_threads_is_not_forked() -> None:
    assert "has started threads" in run("threads")[0]


def test_nor_one_with_children() -> None:
    assert "has started processes" in run("processes")[0]


def test_nor_one_whose_children_nobody_may_wait_for() -> None:
    assert run("SIGCHLD") == ["not kept: SIGCHLD is ignored"]


def test_nor_one_that_dramatiq_did_not_start() -> None:
    assert why_not_kept() == "dramatiq did not start this process"


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (0, "exited with status 0"),
        (-15, "was killed by SIGTERM"),
        (-40, "was killed by signal 40"),
        (70, "exited with status 70, as it does when a thread has died or a job does not heed its time limit"),
    ],
)
def test_exit_codes_in_words(code: int, text: str) -> None:
    assert how_it_ended(code).startswith(text)
