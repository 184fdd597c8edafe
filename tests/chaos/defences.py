"""Switches every defence off in turn, in a copy of the tree, and shows that a test notices.

``python -m tests.chaos.defences``, by hand; words choose some of them. Prints the table that is kept in
``defences.md``, and ends with status 1 if one was not missed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
LOST = "tests/integration/test_nothing_lost_"


@dataclass(frozen=True)
class Defence:
    """What to take away, and who should miss it."""

    what: str
    file: str
    old: str
    new: str
    #: Given to pytest.
    tests: tuple[str, ...]


DEFENCES = [
    Defence(
        "an end of a delivery that was lost is none of the next one's",
        "middleware/lua/finish.lua",
        'if redis.call("hget", ns .. ":__dramaturg__.leases", broker) ~= ARGV[7] or ',
        "if ",
        (f"{LOST}spool.py", "-k", "lease_that_is_lost"),
    ),
    Defence(
        "an end that is told in a batch is none of the next delivery's",
        "middleware/lua/finish_many.lua",
        "  if stands and is_held == 1 then\n",
        "  if is_held == 1 then\n",
        (f"{LOST}batches.py", "-k", "lease"),
    ),
    Defence(
        "what has ended is told before a process leaves",
        "middleware/lossless_broker.py",
        "        self.journal.close(FLUSH_WITHIN)\n",
        "",
        (f"{LOST}batches.py", "-k", "stops"),
    ),
    Defence(
        "what ends once it is recorded goes into the spool where it is not",
        "middleware/failure_endings.py",
        "                    ending.to_spool(error)\n",
        "                    pass\n",
        (f"{LOST}spool.py", "-k", "does_not_answer"),
    ),
    Defence(
        "what waits for its row is ended before a process leaves",
        "middleware/failure_endings.py",
        "        while self._open and time.monotonic() < end:\n",
        "        while False:\n",
        (f"{LOST}endings.py", "-k", "stops"),
    ),
    Defence(
        "of what has a row Redis knows that it has run",
        "worker/broker.py",
        "        broker.tell_ran(ids)\n",
        "        pass\n",
        (f"{LOST}endings.py", "-k", "has_run"),
    ),
    Defence(
        "messages that are sent again at once are there once",
        "middleware/lua/enqueue.lua",
        '  if #ids > 1 and are_new(queue .. ".msgs", ids) then\n',
        "  if #ids > 1 then\n",
        ("tests/integration/test_enqueue_many.py", "-k", "lost_answer or said_again"),
    ),
    Defence(
        "a connection that the server has closed is not at hand",
        "middleware/quick_pool.py",
        " and is_idle(connection._sock)",
        "",
        ("tests/integration/test_quick_pool.py", "-k", "server_closed"),
    ),
    Defence(
        "an answer that an interrupt left unread is nobody else's",
        "middleware/lua_scripts.py",
        "            connection.disconnect()\n            raise\n",
        "            raise\n",
        ("tests/integration/test_quick_pool.py", "-k", "interrupt"),
    ),
    Defence(
        "a keeper knows what began just before its worker died",
        "middleware/lua/obituary.lua",
        '    redis.call("hsetnx", own',
        '    redis.call("hget", own',
        ("tests/e2e/test_keeper.py", "-k", "row_of_a_message"),
    ),
    Defence(
        "what was fetched ahead goes back when jobs become slow",
        "middleware/lossless_consumer.py",
        "                if self._holdings.room_taken > self._least and not self._delayed and not self._unsorted:\n",
        "                if False:\n",
        (f"{LOST}batches.py", "-k", "slow"),
    ),
    Defence(
        "what left a process' hands though Redis does not know is found",
        "middleware/lossless_consumer.py",
        "            self._holdings.discard([(_text(redis_id), epoch)])\n            raise\n",
        "            raise\n",
        (f"{LOST}batches.py", "-k", "delayed"),
    ),
    Defence(
        "who has nothing to do hears of what another has sorted",
        "middleware/lua/fetch.lua",
        '  redis.call("rpush", name, WAKE)\n',
        "",
        ("tests/integration/test_queue_turns.py", "-k", "has_nothing_to_do"),
    ),
    Defence(
        "a failed skip is a failure",
        "middleware/failed_skips.py",
        "if not message.failed:",
        "if False:",
        (f"{LOST}hooks.py", "-k", "skip"),
    ),
    Defence(
        "a retry that cannot be made fails its message",
        "middleware/safe_retries.py",
        "            message.fail()\n",
        "",
        (f"{LOST}hooks.py", "-k", "TestRetries"),
    ),
    Defence(
        "a follow-up that cannot be enqueued fails its message",
        "middleware/safe_follow_ups.py",
        "        message.fail()\n",
        "        return\n",
        (f"{LOST}hooks.py", "-k", "TestFollowUps"),
    ),
    Defence(
        "retries and children are part of the end of their message",
        "middleware/lossless_broker.py",
        "elif self._local.collecting is not None:",
        "elif False:",
        (f"{LOST}outages.py", "-k", "TestRedisAway or loses or retries or sends_it"),
    ),
    Defence(
        "messages are checked when they are fetched",
        "middleware/message_checks.py",
        "        _check(fields, queue_name, redis_id)\n",
        "        pass\n",
        (f"{LOST}malformed.py", "-k", "test_ours_makes_it_a_failure"),
    ),
    Defence(
        "options are checked when a message is sent",
        "middleware/option_checks.py",
        "        check_options(options)\n",
        "        pass\n",
        (f"{LOST}malformed.py", "-k", "test_ours_refuses_it"),
    ),
    Defence(
        "what Redis says we hold and we do not goes back",
        "middleware/lossless_consumer.py",
        "        if strays:\n",
        "        if False:\n",
        (f"{LOST}outages.py", "-k", "test_ours_finds"),
    ),
    Defence(
        "leases end, and what they covered goes back",
        "middleware/lua/beat.lua",
        'for _, gone in ipairs(redis.call("zrangebyscore", alive, "-inf", now - lease)) do\n  try(gone)',
        "for _, gone in ipairs({}) do\n  try(gone)",
        ("tests/integration/test_lease.py",),
    ),
    Defence(
        "all get a grace after Redis was away",
        "middleware/lua/beat.lua",
        'redis.call("set", grace, 1, "px", grace_time)',
        "",
        ("tests/integration/test_lease.py",),
    ),
    Defence(
        "nothing is fetched under a lease that has ended",
        "middleware/lua/fetch.lua",
        'if redis.call("hget", ns .. ":__dramaturg__.leases", broker) ~= lease then',
        "if false then",
        ("tests/integration/test_lease.py",),
    ),
    Defence(
        "a connection to a server that is not the master is closed",
        "worker/redis_client.py",
        "supported_errors=NOT_THE_SERVER",
        "supported_errors=(redis.ConnectionError,)",
        (f"{LOST}failover.py", "-k", "ours"),
    ),
    Defence(
        "failures go into the spool while Postgres is away",
        "middleware/dead_letters.py",
        "            if not isinstance(message, Delivery):\n                raise",
        "            if True:\n                raise",
        (f"{LOST}spool.py", "-k", "jobs_go_on"),
    ),
    Defence(
        "the spool is bounded",
        "middleware/lua/finish.lua",
        "    return -1\n",
        "    redis.log(redis.LOG_DEBUG, 'full')\n",
        (f"{LOST}spool.py", "-k", "bound"),
    ),
    Defence(
        "the spool is drained",
        "middleware/spool_drainer.py",
        "                done = self._record(failures)\n",
        "                done = []\n",
        (f"{LOST}spool.py", "-k", "outlives"),
    ),
    Defence(
        "recording twice is one row",
        "db/failed_jobs.py",
        "WHERE (SELECT true FROM worker_failed_job_deliveries d WHERE d.delivery_id = given.delivery_id) IS NOT TRUE",
        "WHERE true",
        ("tests/integration/test_failed_jobs.py",),
    ),
    Defence(
        "a hook of a user's that raises does not keep ours from being called",
        "middleware/lossless_broker.py",
        "                if isinstance(e, MiddlewareError) and isinstance(e, BrokerConnectionError):\n",
        "                if True:\n",
        (f"{LOST}hooks.py", "-k", "test_ours_ends_it"),
    ),
    Defence(
        "an interrupt while a message is ended is caught",
        "middleware/lossless_broker.py",
        "            if message.unsettled:\n",
        "            if False:\n",
        (f"{LOST}interrupts.py",),
    ),
    Defence(
        "a group's children count once",
        "middleware/lua/finish.lua",
        'redis.call("hsetnx", group, "child." .. child, 1) == 1',
        'redis.call("hset", group, "child." .. child, 1) >= 0',
        (f"{LOST}groups.py", "-k", "once"),
    ),
    Defence(
        "starts are noted",
        "middleware/start_marks.py",
        "        self._running[name] = milliseconds\n",
        "        return\n",
        ("tests/e2e/test_crashes.py", "-k", "kills"),
    ),
    Defence(
        "what was running when a worker was lost runs alone",
        "middleware/solitude.py",
        "                if not self._fetching and not self._busy():\n",
        "                if True:\n",
        ("tests/e2e/test_crashes.py", "-k", "alone"),
    ),
    Defence(
        "a process that was given up writes no row",
        "middleware/lossless_broker.py",
        "            if not self._heartbeat.holds(message.epoch):\n",
        "            if False:\n",
        ("tests/e2e/test_crashes.py", "-k", "frozen"),
    ),
    Defence(
        "a message whose row exists is not run",
        "middleware/crash_guard.py",
        "if message.begun_before and self._was_recorded(message):",
        "if False:",
        ("tests/e2e/test_crashes.py", "-k", "row_exists"),
    ),
    Defence(
        "how a worker process ended is seen and told",
        "middleware/keeper.py",
        "        if code and not told_to_stop:\n",
        "        if False:\n",
        ("tests/e2e/test_keeper.py", "-k", "row_of_a_message"),
    ),
    Defence(
        "a process with a dead thread ends itself",
        "middleware/supervision.py",
        "            dead, loop = dead_threads(worker), get_event_loop_thread()\n",
        "            dead, loop = [], get_event_loop_thread()\n",
        ("tests/e2e/test_shutdown.py", "-k", "dead_thread"),
    ),
    Defence(
        "a process with a job past its hard limit ends itself",
        "middleware/supervision.py",
        "            overdue = [running for running in every if running.due <= now]\n",
        "            overdue = []\n",
        ("tests/e2e/test_shutdown.py", "-k", "heeds_no_limit"),
    ),
    Defence(
        "only the first signal to stop counts",
        "middleware/stop_signals.py",
        "            if not self._stopping:\n                self._stopping = True\n                self._stop()\n",
        "            if True:\n                self._stopping = True\n                self._stop()\n",
        ("tests/e2e/test_shutdown.py", "-k", "ours_gives_back"),
    ),
    Defence(
        "a process ends in time, whatever runs in it",
        "middleware/graceful_shutdown.py",
        "        self._exit_process(EXIT_CODE)\n",
        "",
        ("tests/e2e/test_shutdown.py", "-k", "ours_gives_back"),
    ),
    Defence(
        "a job that the shutdown interrupts goes back as it was",
        "middleware/graceful_shutdown.py",
        "            message.give_back = True\n            logger",
        "            logger",
        (f"{LOST}shutdown.py",),
    ),
    Defence(
        "SystemExit in an async job leaves the loop alive",
        "middleware/event_loop.py",
        "except (SystemExit, KeyboardInterrupt) as e:",
        "except ZeroDivisionError as e:",
        (f"{LOST}shutdown.py", "-k", "event_loop"),
    ),
    Defence(
        "what is sent inside a transaction leaves with it",
        "middleware/lossless_broker.py",
        "elif now or self.outbox is None or not self.outbox.take(message, *entry):",
        "elif True:",
        ("tests/integration/test_outbox.py", "-k", "TestCommit"),
    ),
    Defence(
        "what is sent within a savepoint is rolled back with it",
        "db/session.py",
        "        session.opened.outgoing.roll_back_to(previous)\n",
        "        pass\n",
        ("tests/integration/test_outbox.py", "-k", "savepoint"),
    ),
    Defence(
        "what others left in the outbox is relayed",
        "middleware/relay_outbox.py",
        "broker.outbox.relay.look_after_others(broker.ask_turn)",
        "pass",
        ("tests/integration/test_outbox.py", "-k", "whoever_dies"),
    ),
    Defence(
        "nor does it wait for a process that uses Postgres",
        "middleware/relay_outbox.py",
        "return turn == 1 and glance.may_be_there(_ANYTHING)",
        "return False",
        ("tests/e2e/test_lean.py", "-k", "outbox"),
    ),
    Defence(
        "Redis remembers what it took from the outbox",
        "middleware/lua/relay.lua",
        '"sent", "nx", "ex", ARGV[2])',
        '"sent", "ex", ARGV[2])',
        ("tests/integration/test_outbox.py", "-k", "has_run"),
    ),
    Defence(
        "what was read from the outbox long ago is not relayed",
        "middleware/lua/relay.lua",
        "if now > tonumber(ARGV[1]) then",
        "if false then",
        ("tests/integration/test_outbox.py", "-k", "has_run"),
    ),
    Defence(
        "a transaction's messages are relayed from the first on",
        "db/outbox.py",
        "            ORDER BY id LIMIT :limit\n",
        "            ORDER BY id DESC LIMIT :limit\n",
        ("tests/integration/test_outbox.py", "-k", "in_order"),
    ),
]


def is_missed(defence: Defence, folder: Path) -> bool:
    """Take ``defence`` away in a copy of the tree, and tell whether its tests fail.

    Raises:
      SystemExit: When it is not there to be taken away.
    """
    copy = folder / "tree"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv", "__pycache__", "*.egg-info", ".*_cache"))
    file = copy / defence.file
    text = file.read_text("utf-8")
    if text.count(defence.old) < 1:
        raise SystemExit(f"{defence.what}: not to be found in {defence.file}: {defence.old!r}")
    file.write_text(text.replace(defence.old, defence.new, 1), "utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider", *defence.tests]
    try:
        done = subprocess.run(
            command,
            cwd=copy,
            env={**os.environ, "PYTHONPATH": str(copy)},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return True
    if done.returncode not in {0, 1}:
        raise SystemExit(f"{defence.what}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.returncode == 1


def main() -> int:
    """Take each away, and print the table."""
    print("| defence that was switched off | missed by |\n| --- | --- |")
    left = 0
    for defence in DEFENCES:
        if sys.argv[1:] and not any(word in defence.what for word in sys.argv[1:]):
            continue
        with tempfile.TemporaryDirectory(prefix="dramaturg-") as folder:
            Path(folder).chmod(0o711)
            missed = is_missed(defence, Path(folder))
        left += not missed
        tests = defence.tests[0] + (f" ({defence.tests[2]})" if len(defence.tests) > 2 else "")
        print(f"| {defence.what} | {f'`{tests}`' if missed else '**nobody**'} |", flush=True)
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
