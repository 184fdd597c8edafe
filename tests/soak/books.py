"""The verdict: whether each message that was sent had exactly one ending, and one that it may have."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.accounts import Account
from tests.chaos.book import Line
from tests.chaos.ledger import NOT_RUN, Execution, Ledger
from tests.soak.load import KINDS, LOST, SUCCEEDS


@dataclass(frozen=True, slots=True)
class Note:
    """What Postgres noted of a row: ``INSERT``, ``UPDATE`` of its status, or ``DELETE``."""

    what: str
    row_id: Any
    task_id: str
    tenant_id: Any
    error_type: str
    message: str
    before: str | None
    after: str | None


@dataclass
class Verdict:
    """What came out.

    Attributes:
      table: By kind, how many had which ending.
      error_types: Of all rows.
      moves: Of the status of rows.
      violations: Rule, message id.
      executions: How many there were.
    """

    table: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    error_types: Counter[str] = field(default_factory=Counter)
    moves: Counter[str] = field(default_factory=Counter)
    violations: list[tuple[str, str]] = field(default_factory=list)
    executions: int = 0


class Books:
    """Puts together what was sent, what ran, and what became of rows.

    Arguments:
      accounts: Of what the load sent, by message id; what others sent is in the book.
      lines: Of the book.
      notes: In order.
      kept: Message ids that are in Redis still, and where.
      effects: How often each had the effect that is to be had once, by message id.
      ended: When process groups ended, by their id.
    """

    def __init__(
        self,
        accounts: Mapping[str, Account],
        lines: Sequence[Line],
        notes: Iterable[Note],
        kept: Mapping[str, str],
        effects: Mapping[str, int],
        ended: Mapping[int, float],
    ) -> None:
        self.accounts = {**_sent_by_others(lines), **accounts}
        self.ledger = Ledger(self.accounts, lines, [], kept, [], ended)
        self.notes: dict[str, list[Note]] = defaultdict(list)
        for note in notes:
            self.notes[note.task_id].append(note)
        self.kept = kept
        self.effects = effects

    def judge(self) -> Verdict:
        """Return the verdict on all of it."""
        verdict = Verdict(executions=sum(map(len, self.ledger.executions.values())))
        for account in self.accounts.values():
            rules = list(self._judge(account, verdict))
            verdict.table[account.kind]["sent"] += 1
            for rule in rules:
                verdict.table[account.kind]["wrong"] += 1
                verdict.violations.append((rule, account.id))
        for known, what in ((self.notes, "a row"), (self.kept, "in Redis"), (self.ledger.executions, "an execution")):
            verdict.violations += [(f"of nobody: {what}", id_) for id_ in known.keys() - self.accounts.keys()]
        return verdict

    def _judge(self, account: Account, verdict: Verdict) -> Iterable[str]:
        ran, notes = self.ledger.executions.get(account.id, []), self.notes.get(account.id, [])
        first = [run for run in ran if run.item is None]
        made = [note for note in notes if note.what == "INSERT"]
        for note in notes:
            verdict.moves[f"{note.before or 'new'} -> {note.after or 'removed'}"] += 1
        if account.id in self.kept:
            yield "stuck"
        elif len(made) > 1:
            yield "two rows"
        elif not made:
            yield from self._without_row(account, first, verdict)
        else:
            yield from self._with_row(account, first, made[0], verdict)
        yield from self._replays(ran, notes)
        if any(run.bound != account.tenant for run in ran) or any(_text(n.tenant_id) != account.tenant for n in notes):
            yield "crossed"
        if account.kind != LOST and len(first) > self.ledger.budget(account):
            yield "ran too often"
        if account.kind == "once" and self.effects.get(account.id, 0) != 1:
            yield f"had its effect {self.effects.get(account.id, 0)} times"

    @staticmethod
    def _without_row(account: Account, first: Sequence[Execution], verdict: Verdict) -> Iterable[str]:
        if not first or not first[-1].ok:
            yield "lost"
            return
        verdict.table[account.kind][SUCCEEDS] += 1
        if SUCCEEDS not in _may(account):
            yield "succeeded, and was to fail"

    @staticmethod
    def _with_row(account: Account, first: Sequence[Execution], made: Note, verdict: Verdict) -> Iterable[str]:
        verdict.error_types[made.error_type] += 1
        if first and first[-1].ok and made.error_type not in NOT_RUN:
            yield "both"
            return
        verdict.table[account.kind]["row"] += 1
        if made.error_type not in _may(account):
            yield f"a row of {made.error_type}: {made.message[:100]}"

    @staticmethod
    def _replays(ran: Sequence[Execution], notes: Sequence[Note]) -> Iterable[str]:
        """Each replay that succeeded closed the row, and each that failed returned it."""
        last = {run.item: run for run in ran if run.item is not None}
        moves = Counter((note.before, note.after) for note in notes)
        succeeded = sum(run.ok for run in last.values())
        if moves["in_progress", "resolved"] != succeeded:
            yield f"{succeeded} replays succeeded, and {moves['in_progress', 'resolved']} closed its row"
        if moves["in_progress", "pending"] < len(last) - succeeded:
            yield f"{len(last) - succeeded} replays failed, and {moves['in_progress', 'pending']} returned its row"
        if notes and notes[-1].after == "in_progress":
            yield "in progress for ever"


def _sent_by_others(lines: Iterable[Line]) -> dict[str, Account]:
    """Return accounts of what processes sent by themselves: the scheduler, and jobs."""
    found: dict[str, Account] = {}
    for line in lines:
        if line.what == "enqueued":
            said = line.said
            # A look of whoever follows a run is no failure, and there may be many.
            often = 1_000 if said["actor"].endswith("follow_run") else 3
            found.setdefault(said["id"], Account(said["id"], said["actor"], said["queue"], said["t"], often))
    return found


def _may(account: Account) -> tuple[str, ...]:
    kind = KINDS.get(account.kind)
    if kind is not None:
        return kind.may
    return ("worker_lost",) if account.kind == LOST else (SUCCEEDS,)


def _text(value: object) -> str | None:
    return None if value is None else str(value)
