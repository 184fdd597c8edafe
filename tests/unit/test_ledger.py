"""That the ledger of ``tests/chaos`` finds what it looks for."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.chaos.accounts import FOLLOWS, UNSURE, Account
from tests.chaos.book import Line
from tests.chaos.faults import Fault
from tests.chaos.ledger import Ledger, Verdict
from tests.chaos.plan import faults, messages

TENANT, OTHER = "00000000-0000-0000-0000-0000000000c0", "00000000-0000-0000-0000-0000000000c1"


class Case:
    """One message, ``m``, and what was said of it."""

    def __init__(self, **account: Any) -> None:
        self.accounts = {"m": Account("m", "success", "llm", TENANT, **account)}
        self.lines: list[Line] = []
        self.rows: list[dict[str, Any]] = []
        self.kept: dict[str, str] = {}
        self.faults: list[Fault] = []
        self.committed: list[str] = []

    def run(self, how: str | None = "ended", *, pid: int = 1, tenant: str = TENANT, message: str = "m") -> Case:
        at, x = float(len(self.lines)), str(len(self.lines))
        self.lines.append(Line("began", at, pid, {"id": message, "x": x, "bound": tenant}))
        if how is not None:
            self.lines.append(Line(how, at + 0.5, pid, {"id": message, "x": x, "error": "ValueError: no"}))
        return self

    def row(self, tenant: str = TENANT, error_type: str = "validation_error", task_id: str = "m") -> Case:
        row = {"task_id": task_id, "tenant_id": tenant, "error_type": error_type, "exception_class": "ValueError"}
        self.rows.append({**row, "error_message": "", "worker": "", "failed_at": datetime.now(UTC)})
        return self

    def killed(self, pid: int = 1) -> Case:
        self.faults.append(Fault("kill", len(self.lines), len(self.lines), frozenset({pid})))
        return self

    def left(self) -> Case:
        self.kept["m"] = "llm"
        return self

    def follower(self) -> Case:
        self.accounts["next"] = Account("next", "success", "llm", TENANT, given=FOLLOWS, after=["m"])
        return self

    def in_a_transaction(self, *, committed: bool) -> Case:
        self.lines.insert(0, Line("handed in", 0.0, 1, {"id": "m", "queue": "llm", "tenant": TENANT}))
        self.committed = ["m"] if committed else []
        return self

    def judge(self) -> Verdict:
        return Ledger(self.accounts, self.lines, self.rows, self.kept, self.faults, {}, self.committed).judge()


@pytest.mark.parametrize(
    "case",
    [
        lambda: Case().run(),
        lambda: Case().run("raised").run("raised").run(),
        lambda: Case(max_retries=0).run("raised").row(),
        lambda: Case().row(error_type="unknown_actor"),
        lambda: Case(given=UNSURE),
        lambda: Case(given=UNSURE).run(),
        lambda: Case(max_retries=0).run(None).killed().run(pid=2),
        lambda: Case().run().follower().run(message="next"),
        lambda: Case(max_retries=0).run("raised").row().follower(),
        # Redelivered, because its success was not acknowledged.
        lambda: Case(max_retries=0).run().killed().run("raised", pid=2).row(),
        lambda: Case().run().killed().row(error_type="worker_lost"),
        lambda: Case().run().in_a_transaction(committed=True),
        lambda: Case().in_a_transaction(committed=False),
    ],
)
def test_one_ending_is_no_violation(case: Callable[[], Case]) -> None:
    assert case().judge().violations == []


@pytest.mark.parametrize(
    ("case", "rule"),
    [
        (lambda: Case(), "lost"),
        (lambda: Case().run("raised"), "lost"),
        (lambda: Case().run(None).killed(), "lost"),
        (lambda: Case().run().killed().run("raised", pid=2), "lost"),
        (lambda: Case(given=UNSURE).run("raised"), "lost"),
        (lambda: Case().run().follower(), "lost"),
        (lambda: Case().left(), "stuck"),
        (lambda: Case().run().left(), "stuck"),
        (lambda: Case().run().row(), "both"),
        (lambda: Case().run("raised").row().row(), "two rows"),
        (lambda: Case().run(tenant=OTHER), "crossed"),
        (lambda: Case().run("raised").row(tenant=OTHER), "crossed"),
        (lambda: Case(max_retries=1).run("raised").run("raised").run(), "over budget"),
        (lambda: Case(max_retries=0).run().killed(pid=2).run(), "over budget"),
        (lambda: Case().run("raised").row().follower().run(message="next"), "early"),
        (lambda: Case().run().row(task_id="another"), "a row of nobody"),
        (lambda: Case().in_a_transaction(committed=True), "lost"),
        (lambda: Case().run().in_a_transaction(committed=False), "early"),
    ],
)
def test_anything_else_is_one(case: Callable[[], Case], rule: str) -> None:
    assert [found for found, _ in case().judge().violations] == [rule]


def test_rows_after_an_unacknowledged_success_and_innocents_are_counted() -> None:
    assert Case(max_retries=0).run().killed().run("raised", pid=2).row().judge().rerun == ["m"]
    assert Case().run().run().judge().repeated == ["m"]
    assert Case().run(None).killed().row(error_type="worker_lost").judge().condemned == ["m"]


def test_the_same_seed_is_the_same_plan() -> None:
    assert messages(7, 200, 60) == messages(7, 200, 60) != messages(8, 200, 60)
    assert list(faults(7, 60)) == list(faults(7, 60)) != list(faults(8, 60))
