"""That the soak of ``tests/soak`` finds what it looks for: what grows, and what has not ended as it must."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.accounts import Account
from tests.chaos.book import Line
from tests.soak import flatness
from tests.soak.flatness import MEMORY, MIB, THREADS, judge
from tests.soak.sampling import ProcessSample, Sample, kind_of, load, save

TENANT, OTHER = "00000000-0000-0000-0000-0000000000c0", "00000000-0000-0000-0000-0000000000c1"


def series(*values: float) -> list[tuple[float, float]]:
    return [(float(at), value) for at, value in enumerate(values)]


class TestFlatness:
    def test_what_fills_at_first_and_then_stays_is_flat(self) -> None:
        found = judge("x", series(*range(10), *[10] * 50), THREADS)
        assert (found.first, found.last, found.flat) == (10, 10, True)

    def test_what_grows_is_not(self) -> None:
        found = judge("x", series(*range(100, 700, 10)), MEMORY)
        assert found.first < found.last
        assert found.flat is True, "megabytes beside are allowed"
        assert judge("x", series(*(n * MIB for n in range(100, 160))), MEMORY).flat is False

    def test_one_peak_is_no_growth_and_a_step_is(self) -> None:
        assert judge("x", series(*[4] * 58, 400, 4), THREADS).flat is True
        assert judge("x", series(*[4] * 40, *[6] * 20), THREADS).flat is False

    def test_too_little_is_not_judged(self) -> None:
        assert judge("x", series(*range(12)), THREADS).flat is None
        assert judge("x", [], THREADS).flat is None

    def test_samples_are_told_by_entry_role_and_process(self, tmp_path: Path) -> None:
        samples = [
            Sample(
                float(n),
                [
                    ProcessSample("llm", "keeper", 1, n, 1, 1, 1),
                    ProcessSample("llm", "worker", 2 if n < 4 else 3, n if n < 4 else n - 4, 100 + n, 9, 9),
                    ProcessSample("llm", "worker", 4, n, 50, 9, 9),
                ],
                {"failed jobs": n},
                {"t": n},
            )
            for n in range(12)
        ]
        save(samples, tmp_path / "samples", restarts=[3.5])
        said, again = load(tmp_path / "samples")
        assert (said, again) == ({"restarts": [3.5]}, samples)
        settled = flatness.processes(samples, "llm", "worker", settled=2)
        # While the larger one is new, the other counts.
        assert [(at, process.pid) for at, process in settled][:6] == [(2, 2), (3, 2), (4, 4), (5, 4), (6, 3), (7, 3)]
        # Of several, one after the other, a little more is no growth; of one it is.
        for pid, flat in ((7, True), (1, False)):
            seen = [(at, replace(samples[0].processes[0], pid=1 if at < 9 else pid, rss=100 * MIB)) for at in range(36)]
            grown = [(at, replace(each, rss=(100 if at < 18 else 108) * MIB)) for at, each in seen]
            assert {each.what: each.flat for each in flatness.judge_processes(grown)}["memory"] is flat
        lives = flatness.generations(samples, "llm", "worker")
        assert {pid: len(life) for pid, life in lives.items()} == {2: 4, 3: 8, 4: 12}
        assert flatness.longest(lives.values())[0][1].pid == 4

    def test_kinds_of_keys(self) -> None:
        names = [f"dramatiq:__dramaturg__.replay.{TENANT}", f"dramatiq:__dramaturg__.replay.{OTHER}", "depths.495734"]
        assert list(map(kind_of, names)) == [*["dramatiq:__dramaturg__.replay.*"] * 2, "depths.*"]


class Case:
    """One message, ``m``, and what was said of it."""

    def __init__(self, kind: str = "job", **account: Any) -> None:
        self.accounts = {"m": Account("m", kind, "llm", TENANT, **account)}
        self.lines: list[Line] = []
        self.notes: list[tuple[str, str | None, str | None, str]] = []
        self.kept: dict[str, str] = {}
        self.effects: dict[str, int] = {}

    def run(self, how: str | None = "ended", item: str | None = None, tenant: str = TENANT, id_: str = "m") -> Case:
        at, x = float(len(self.lines)), str(len(self.lines))
        self.lines.append(Line("began", at, 1, {"id": id_, "x": x, "bound": tenant, "item": item}))
        if how is not None:
            self.lines.append(Line(how, at + 0.5, 1, {"id": id_, "x": x, "error": "Broken: no"}))
        return self

    def row(self, *statuses: str | None, error_type: str = "application_error") -> Case:
        for before, after in zip((None, *statuses), statuses, strict=False):
            what = "INSERT" if before is None else "DELETE" if after is None else "UPDATE"
            self.notes.append((what, before, after, error_type))
        return self

    def judge(self) -> tuple[dict[str, Counter[str]], set[str]]:
        from tests.soak.books import Books, Note

        notes = [Note(what, 1, "m", TENANT, kind, "no", before, after) for what, before, after, kind in self.notes]
        verdict = Books(self.accounts, self.lines, notes, self.kept, self.effects, {}).judge()
        return verdict.table, {rule for rule, _ in verdict.violations}


MENDED = "is mended"


@pytest.mark.parametrize(
    "case",
    [
        Case().run(),
        Case("flaky").run("raised").run("raised").run(),
        Case("fails").run("raised").row("pending", "abandoned", None),
        Case("expired").row("pending", error_type="expired"),
        Case("lost").run(None).run(None).run(None).row("pending", error_type="worker_lost"),
        Case(MENDED).run("raised").row("pending", "in_progress", "resolved", None).run(item="1"),
        Case(MENDED)
        .run("raised")
        .row("pending", "in_progress", "pending", "in_progress", "resolved")
        .run("raised", item="1")
        .run(item="2"),
        # What could not be sent goes back.
        Case(MENDED).run("raised").row("pending", "in_progress", "pending"),
    ],
)
def test_one_ending_is_right(case: Case) -> None:
    assert case.judge()[1] == set()


@pytest.mark.parametrize(
    ("case", "rule"),
    [
        (Case(), "lost"),
        (Case().run("raised"), "lost"),
        (Case().run(None), "lost"),
        (Case("fails").run("raised").row("pending").row("pending"), "two rows"),
        (Case("fails").run().row("pending"), "both"),
        (Case("fails").run(), "succeeded, and was to fail"),
        (Case().run("raised").row("pending", error_type="timeout"), "a row of timeout: no"),
        (Case().run(tenant=OTHER), "crossed"),
        (Case(max_retries=0).run().run(), "ran too often"),
        (Case(MENDED).run("raised").row("pending", "in_progress"), "in progress for ever"),
        (Case(MENDED).run("raised").row("pending").run(item="1"), "1 replays succeeded, and 0 closed its row"),
        (
            Case(MENDED).run("raised").row("pending", "in_progress", "resolved"),
            "0 replays succeeded, and 1 closed its row",
        ),
        (Case().run().run(id_="other"), "of nobody: an execution"),
        (Case("once").run(), "had its effect 0 times"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_broken_rule_is_found(case: Case, rule: str) -> None:
    assert rule in case.judge()[1]


def test_what_is_in_redis_still_is_stuck() -> None:
    case = Case().run()
    case.kept["m"] = "llm"
    assert case.judge()[1] == {"stuck"}


def test_what_processes_send_by_themselves_must_end_too() -> None:
    case = Case().run()
    case.lines.append(Line("enqueued", 1.0, 1, {"id": "child", "actor": "soak.tick", "queue": "llm", "t": None}))
    table, rules = case.judge()
    assert (table["soak.tick"], rules) == ({"sent": 1, "wrong": 1}, {"lost"})
