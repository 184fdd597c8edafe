"""Soaks a deployment: ``python -m tests.soak --minutes 30``.

Every entry of the Procfile runs twice, on servers of its own: once restarted every five minutes, one entry after the
other, and once left alone. All that ours do is sent to the four queues, at a steady rate, with every way to fail; the
schedule is sped up, people replay and close what failed, and others look at the console. Ends with status 1 if a
message had not exactly one ending, or one that it may not have, if something was left in Redis, or if memory,
connections, threads, files, rows or keys grew, which a run of less than ten minutes cannot tell. Needs
Linux, and the embedded servers.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from loguru import logger
from rich.console import Console
from rich.table import Table

from tests.chaos.ending import end_cleanly_when_told, keep_logs
from tests.chaos.residue import RESTS, kept, residue, settle
from tests.llm_server import LlmServer, running_llm
from tests.servers import temporary_folder
from tests.soak import flatness
from tests.soak.flatness import MIB, Judged
from tests.soak.sampling import Sampler, save
from tests.soak.world import World, running_world
from tests.supervisor import Supervisor, supervised

#: What the schedule, its samples and the limits of calls keep, beside what any run leaves.
KEPT = (*RESTS, "schedule", "schedulers", "depths.", "llm_rate")
#: What grows with what was done, and is kept for long: a day of sent replays, hours of counts, the next for a month.
GROWS = (
    *("soak_notes", "soak_effects", "worker_llm_answers"),
    *("dramatiq:__dramaturg__.replay.", "dramatiq:__dramaturg__.ended.", "dramatiq:__dramaturg__.llm_rate"),
)
#: Of the whole time, when what kills its worker is sent; after that, those that are not restarted live to the end.
LOST_AT = (0.03, 0.06, 0.09, 0.12)
#: Seconds that everything may take to end.
GRACE = 180.0
TOLD = 15
#: Minutes of a run that are needed to tell whether something grows: in a shorter one, it starts.
LONG_ENOUGH = 10.0
#: Logged where something is wrong, other than what Dramatiq says of a job that failed.
_LINE = re.compile(r"^(?!.*Failed to process message).*\b(?:WARNING|ERROR|CRITICAL)\b.*$", re.MULTILINE)


def main() -> int:
    """Run it, print what came out, and return the status to end with."""
    arguments = _arguments()
    end_cleanly_when_told()
    with (
        temporary_folder() as folder,
        running_llm() as llm,
        running_world(folder, llm.url) as world,
    ):
        os.environ.update(world.environment())
        logger.remove()
        world.release()
        try:
            return _Soak(arguments, world, llm).run()
        finally:
            if arguments.logs is not None:
                keep_logs(folder, arguments.logs)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--rate", type=float, default=10, help="messages a second")
    parser.add_argument("--restart-every", type=float, default=5, help="minutes between rolling restarts")
    parser.add_argument("--every", type=float, default=5, help="seconds between samples")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--logs", type=Path, help="a folder for the logs of the processes and the book")
    parser.add_argument("--samples", type=Path, help="a file for the samples, for tests.soak.plot")
    found = parser.parse_args()
    for name, low, high in (("minutes", 1, 1440), ("rate", 0.1, 1000), ("restart_every", 0.5, 1440), ("every", 1, 60)):
        if not low <= getattr(found, name) <= high:
            parser.error(f"--{name.replace('_', '-')} must be from {low} to {high}, not {getattr(found, name)}")
    return found


class _Soak:
    """A run."""

    def __init__(self, arguments: argparse.Namespace, world: World, llm: LlmServer) -> None:
        # Settings are read at import.
        from tests.soak import actors
        from tests.soak.load import Load
        from tests.soak.model import misbehave
        from tests.soak.people import People

        self.arguments = arguments
        self.world = world
        world.prepare()
        self.client = world.redis()
        self.load = Load(actors.broker, self.client, arguments.seed)
        misbehave(llm, arguments.seed)
        self.people = People(world)
        self.stop = threading.Event()
        #: When rolling restarts began, in seconds; and how long each entry took to end.
        self.restarts: list[float] = []
        self.stopped_in: list[tuple[float, str]] = []
        self.problems: list[str] = []

    def run(self) -> int:
        """Run it, say what came out, and return the status to end with."""
        began = time.time()
        commands, environment = self.world.entries(), self.world.environment()
        with supervised(environment, self.world.folder, commands) as supervisor:
            self.load.recompute_all()
            if left := settle(self._left, time.monotonic() + 60):
                self.problems.append(f"the first recomputes do not end: {dict(left)}")
            with Sampler(self.world, supervisor, self.arguments.every) as sampler:
                self._soak(supervisor, sampler)
            left = self._end(supervisor)
            in_redis = kept(self.client)
            starts, ended = supervisor.started, dict(supervisor.ended)
        self.problems += [f"people: {error}" for error in self.people.errors] + sampler.errors
        if self.arguments.samples is not None:
            save(sampler.samples, self.arguments.samples, restarts=self.restarts)
        return self._judge(sampler, left, in_redis, starts, ended, time.time() - began)

    def _soak(self, supervisor: Supervisor, sampler: Sampler) -> None:
        self.people.come()
        helpers = [
            threading.Thread(target=self._guarded, args=(job, supervisor, sampler), daemon=True)
            for job in (self._restart, self._lose)
        ]
        for helper in helpers:
            helper.start()
        try:
            until = time.monotonic() + self.arguments.minutes * 60
            self.load.keep_up(self.arguments.rate, until, self.stop.is_set)
        finally:
            self.stop.set()
            for helper in helpers:
                helper.join()

    def _guarded(self, job: Any, supervisor: Supervisor, sampler: Sampler) -> None:
        try:
            job(supervisor, sampler)
        except Exception as e:  # noqa: BLE001 - told at the end
            self.problems.append(f"{type(e).__name__}: {e}")

    def _restart(self, supervisor: Supervisor, sampler: Sampler) -> None:
        """Restart one entry after the other, every few minutes."""
        while not self.stop.wait(max(0.0, self.arguments.restart_every * 60 * (len(self.restarts) + 1) - sampler.now)):
            self.restarts.append(round(sampler.now, 1))
            for name in supervisor.entries:
                if not name.endswith(" 2") and not self.stop.is_set():
                    began = time.monotonic()
                    supervisor.restart(name)
                    self.stopped_in.append((time.monotonic() - began, name))

    def _lose(self, _: Supervisor, sampler: Sampler) -> None:
        """Send what kills its worker, for each queue."""
        from tests.soak.load import LOST
        from worker.queues import Queue

        for queue, at in zip(Queue, LOST_AT, strict=True):
            if self.stop.wait(max(0.0, at * self.arguments.minutes * 60 - sampler.now)):
                return
            self.load.send(LOST, queue.value)

    def _end(self, supervisor: Supervisor) -> Counter[str]:
        """Let everything end that was sent, and return what is left in Redis."""
        from tests.soak.people import wait_for_replays
        from worker.maintenance import adopt_dead_letters

        for name in ("scheduler", "scheduler 2"):
            supervisor.switch_off(name)
        adopt_dead_letters.send()
        settle(self._left, time.monotonic() + GRACE)
        self.people.leave()
        self.problems += [f"replay {what}" for what in wait_for_replays(self.world, GRACE)]
        return settle(self._left, time.monotonic() + 30)

    def _left(self) -> Counter[str]:
        return residue(self.client, KEPT)

    def _judge(
        self,
        sampler: Sampler,
        left: Counter[str],
        in_redis: dict[str, str],
        starts: int,
        ended: dict[int, float],
        seconds: float,
    ) -> int:
        from tests.soak.books import Books, Note

        notes = [
            Note(**row)
            for row in self.world.query(
                "SELECT what, row_id, task_id, tenant_id, error_type, message, before, after FROM soak_notes ORDER BY n"
            )
        ]
        effects = self.world.query("SELECT message_id, count(*) AS n FROM soak_effects GROUP BY 1")
        books = Books(
            self.load.accounts,
            self.world.book.read(),
            notes,
            in_redis,
            {row["message_id"]: row["n"] for row in effects},
            ended,
        )
        verdict = books.judge()
        console = Console(width=150)
        _show_books(console, verdict)
        grew = self._show_flatness(console, sampler)
        console.print(
            f"{sum(count['sent'] for count in verdict.table.values())} messages, {verdict.executions} executions; "
            f"{starts} starts of {len(self.world.entries())} entries; {len(self.restarts)} rolling restarts "
            f"({len(self.stopped_in)} ends, the longest {max(self.stopped_in, default=(0.0, ''))[0]:.1f} s); "
            f"{seconds:.0f} seconds"
        )
        console.print("people:", dict(self.people.done), "the console's answers:", dict(self.people.looks))
        self._show_logs(console)
        for rule, message_id in verdict.violations[:TOLD]:
            lines = [*books.ledger.history(message_id), *(str(note) for note in books.notes.get(message_id, ()))]
            console.print(f"\n{rule}: {message_id}", *lines, sep="\n  ", markup=False, highlight=False)
        for what in (*self.problems[:TOLD], *([f"left in Redis: {dict(left)}"] if left else [])):
            console.print(what, markup=False, highlight=False)
        console.print(
            f"{len(verdict.violations)} violations {dict(Counter(rule for rule, _ in verdict.violations))}; "
            f"{len(self.problems)} problems; {sum(left.values())} left in Redis; grew: {', '.join(grew) or 'nothing'}"
            f"{'' if self._is_long else ', in too short a time to count'}",
            markup=False,
        )
        return 1 if verdict.violations or self.problems or left or (grew and self._is_long) else 0

    @property
    def _is_long(self) -> bool:
        return bool(self.arguments.minutes >= LONG_ENOUGH)

    def _show_flatness(self, console: Console, sampler: Sampler) -> list[str]:
        """Print what everything took at first and at last, and return what grew."""
        # While they start, they grow.
        settled = self.arguments.restart_every * 60 / 5
        grew: list[str] = []

        def cells(judged: list[Judged], of: str = "", unit: float = 1) -> list[str]:
            grew.extend(f"{of}{each.what}" for each in judged if each.flat is False)
            return [f"{each.first / unit:,.0f} -> {each.last / unit:,.0f}{_mark(each)}" for each in judged]

        table = Table("process", "MiB", "threads", "files", "of", title="second sixth -> last sixth")
        for entry in self.world.entries():
            for role in ("main", "keeper", "worker"):
                alone = entry.endswith(" 2")
                seen = (
                    flatness.longest(flatness.generations(sampler.samples, entry, role).values())
                    if alone
                    else flatness.processes(sampler.samples, entry, role, settled)
                )
                if seen:
                    memory, *others = flatness.judge_processes(seen)
                    of, name = f"{seen[-1][0] - seen[0][0]:.0f} s", f"{entry}, {role}"
                    table.add_row(name, *cells([memory], f"{name}: ", MIB), *cells(others, f"{name}: "), of)
        console.print(table)
        table = Table("what", "second sixth -> last sixth")
        for judged in flatness.judge_servers(sampler.samples):
            table.add_row(judged.what, *cells([judged], unit=MIB if judged.first > MIB else 1))
        for judged in flatness.judge_tables(sampler.samples, GROWS):
            cell = cells([judged])
            if judged.flat is False or judged.last > 50:
                table.add_row(judged.what, *cell)
        console.print(table)
        return grew

    def _show_logs(self, console: Console) -> None:
        """Say what was logged as an error, by what it has in common."""
        said: Counter[str] = Counter()
        for path in self.world.folder.glob("*.log"):
            for line in _LINE.findall(path.read_text("utf-8", "replace")):
                with suppress(ValueError):
                    told = json.loads(line)
                    line = f"{told['level']} {told['logger']}: {told['message']}"
                said[re.sub(r"[0-9a-f-]{36}|\d+", "*", line)[:140]] += 1
        for line, count in said.most_common(TOLD):
            console.print(f"{count:>6} x {line}", markup=False, highlight=False)


def _mark(judged: Judged) -> str:
    return {True: "", False: "  GREW", None: "  (too short)"}[judged.flat]


def _show_books(console: Console, verdict: Any) -> None:
    columns = ("sent", "succeeds", "row", "wrong")
    table = Table("kind", *(name.replace("succeeds", "succeeded") for name in columns), title="books")
    total: Counter[str] = Counter()
    for kind, count in sorted(verdict.table.items()):
        table.add_row(kind, *(str(count[name] or "") for name in columns))
        total += count
    table.add_section()
    table.add_row("all", *(str(total[name]) for name in columns))
    console.print(table)
    console.print("rows:", dict(verdict.error_types.most_common()))
    console.print("moves:", dict(verdict.moves.most_common()))


if __name__ == "__main__":
    sys.exit(main())
