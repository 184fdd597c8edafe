"""The verdict: which ending each message had, and which rules were broken."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from tests.chaos.accounts import ACCEPTED, FOLLOWS, LEFT_OUT, TRANSACTION, UNSURE, Account
from tests.chaos.book import Line
from tests.chaos.faults import Fault
from tests.chaos.plan import POISON

#: Losses of its worker after which ours starts a message no more.
MAX_STARTS = 3
#: Seconds by which what a fault of Redis or a wire does outlives it.
AFTERMATH = 6.0
#: Error types of rows of messages that did not run for them.
NOT_RUN = {"worker_lost", "expired"}


@dataclass
class Execution:
    """One run of a message."""

    id: str
    began: float
    pid: int
    bound: str | None
    saw: str | None = None
    ended: float | None = None
    raised: float | None = None
    error: str = ""
    #: The item of a replay that it is for.
    item: str | None = None

    @property
    def ok(self) -> bool:
        """Whether the actor came to its end."""
        return self.ended is not None


@dataclass
class Verdict:
    """What came out.

    Attributes:
      table: By kind, counts by column.
      violations: Rule, message id.
      rerun: Messages with a row that had succeeded before, which was never acknowledged.
      repeated: Messages that ran again after a success in a process that no fault had hit.
      condemned: Messages other than poison that were stopped because too many faults met them.
      unsure: Of those whose ``send()`` raised, how many were sent all the same.
    """

    table: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    violations: list[tuple[str, str]] = field(default_factory=list)
    rerun: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    condemned: list[str] = field(default_factory=list)
    unsure: Counter[str] = field(default_factory=Counter)


class Ledger:
    """Puts together what producer, jobs, Postgres and Redis say.

    Arguments:
      accounts: By message id.
      lines: Of the book.
      rows: Of worker_failed_jobs.
      kept: Message ids (or digests) still in Redis, and where.
      faults: What was done.
      ended: When process groups ended, by their id.
      committed: Messages that were sent inside transactions which were committed, as these themselves say.
    """

    def __init__(
        self,
        accounts: Mapping[str, Account],
        lines: Sequence[Line],
        rows: Iterable[dict[str, Any]],
        kept: Mapping[str, str],
        faults: Sequence[Fault],
        ended: Mapping[int, float],
        committed: Collection[str] = (),
    ) -> None:
        self.accounts = dict(accounts)
        self.committed = set(committed)
        self.kept = kept
        self.faults = faults
        self.rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in rows:
            self.rows[row["task_id"]].append(row)
        self.executions: dict[str, list[Execution]] = defaultdict(list)
        self._disrupted: dict[int, list[float]] = defaultdict(list)
        self._read(lines)
        self._note_disruptions(lines, ended)

    def _read(self, lines: Sequence[Line]) -> None:
        by_name: dict[str, Execution] = {}
        for line in lines:
            said = line.said
            match line.what:
                case "began":
                    execution = Execution(said["id"], line.at, line.pid, said["bound"], item=said.get("item"))
                    by_name[said["x"]] = execution
                    self.executions[said["id"]].append(execution)
                case "saw":
                    by_name[said["x"]].saw = said["tenant"]
                case "ended":
                    by_name[said["x"]].ended = line.at
                case "raised":
                    by_name[said["x"]].raised, by_name[said["x"]].error = line.at, said["error"]
                case "sending" | "sent":
                    given = ACCEPTED if line.what == "sent" else UNSURE
                    self.accounts[said["id"]] = Account(said["id"], "child", said["queue"], said["tenant"], given=given)
                case "handed in":
                    self.accounts[said["id"]] = Account(
                        said["id"], "sent in a transaction", said["queue"], said["tenant"], given=TRANSACTION
                    )
                case _:
                    pass

    def _note_disruptions(self, lines: Sequence[Line], ended: Mapping[int, float]) -> None:
        for fault in self.faults:
            for pid in fault.pids:
                self._disrupted[pid].append(fault.ended)
        for line in lines:
            if line.what == "booted" and line.said["group"] in ended:
                self._disrupted[line.pid].append(ended[line.said["group"]])

    def judge(self) -> Verdict:
        """Return the verdict on all of it."""
        verdict = Verdict()
        endings: dict[str, str] = {}
        # What follows comes after what it follows.
        for account in self.accounts.values():
            endings[account.id] = self._judge(account, endings, verdict)
        for task_id in self.rows.keys() - self.accounts.keys():
            verdict.violations.append(("a row of nobody", task_id))
        for message_id in self.kept.keys() - self.accounts.keys():
            verdict.violations.append(("of nobody, in Redis", message_id))
        return verdict

    def _judge(self, account: Account, endings: Mapping[str, str], verdict: Verdict) -> str:
        count = verdict.table[account.kind]
        ran, rows = self.executions[account.id], self.rows[account.id]
        there = bool(ran or rows or account.id in self.kept)
        if account.given == UNSURE:
            verdict.unsure["sent" if there else "not sent"] += 1
            count["unsure"] += 1
            if not there:
                return "not sent"
        elif account.given == FOLLOWS and {endings[before] for before in account.after} != {"succeeded"}:
            if there:
                return self._broken(verdict, account, "early")
            return "not due"
        elif account.given == TRANSACTION and account.id not in self.committed:
            if there:
                return self._broken(verdict, account, "early")
            return "rolled back"
        elif account.given == LEFT_OUT:
            if there:
                return self._broken(verdict, account, "early")
            return "left out"
        count["accepted"] += 1
        ending = self._ending(account, verdict)
        if ending in {"succeeded", "row"}:
            count[ending] += 1
        else:
            self._broken(verdict, account, ending)
        if ending == "row" and account.kind != POISON and rows[0]["error_type"] == "worker_lost":
            verdict.condemned.append(account.id)
        if any(run.ok and not self._faults_after(run) for run in ran[:-1]):
            verdict.repeated.append(account.id)
        if self._crossed(account):
            self._broken(verdict, account, "crossed")
        if len(ran) > self.budget(account):
            self._broken(verdict, account, "over budget")
        return ending

    def _broken(self, verdict: Verdict, account: Account, rule: str) -> str:
        verdict.table[account.kind][rule] += 1
        verdict.violations.append((rule, account.id))
        return rule

    def _ending(self, account: Account, verdict: Verdict) -> str:
        ran, rows = self.executions[account.id], self.rows[account.id]
        # A later start is of a redelivery or a retry: what the one before it did was not acknowledged, or failed.
        last = ran[-1] if ran else None
        if account.id in self.kept:
            return "stuck"
        if len(rows) > 1:
            return "two rows"
        if not rows:
            return "succeeded" if last is not None and last.ok else "lost"
        if last is not None and last.ok and rows[0]["error_type"] not in NOT_RUN:
            return "both"
        if any(execution.ok for execution in ran):
            verdict.rerun.append(account.id)
        return "row"

    def _crossed(self, account: Account) -> bool:
        seen = [execution.saw for execution in self.executions[account.id] if execution.saw is not None]
        bound = [execution.bound for execution in self.executions[account.id] if execution.bound is not None]
        rows = [row["tenant_id"] and str(row["tenant_id"]) for row in self.rows[account.id]]
        return any(tenant != account.tenant for tenant in (*seen, *bound, *rows))

    def budget(self, account: Account) -> int:
        """Return how often a message may have begun to run.

        Once for each try that it has; once more for each fault that hit a process which had begun it, that process' own
        end included, because it may have come between the message's end and Redis' hearing of it. Poison ends its
        processes itself, and may do so :data:`MAX_STARTS` times; a start that Redis could not be told of, because it or
        the wire was away, does not count.
        """
        ran = self.executions[account.id]
        if not ran:
            return 0
        if account.kind == POISON:
            raised = sum(execution.raised is not None for execution in ran)
            return MAX_STARTS + raised + sum(self._unnoted(execution) for execution in ran)
        faults = {(execution.pid, at) for execution in ran for at in self._faults_after(execution)}
        return account.max_retries + 1 + len(faults)

    def _faults_after(self, execution: Execution) -> list[float]:
        """Return when faults of its process were over, of those that may have hit the execution."""
        return [at for at in self._disrupted.get(execution.pid, ()) if at >= execution.began]

    def _unnoted(self, execution: Execution) -> bool:
        return any(
            fault.began - 1 <= execution.began <= fault.ended + AFTERMATH for fault in self.faults if not fault.pids
        )

    def history(self, message_id: str) -> list[str]:
        """Return what is known of a message, in order of time."""
        account = self.accounts.get(message_id)
        events: list[tuple[float, str]] = []
        pids = set()
        for execution in self.executions.get(message_id, ()):
            pids.add(execution.pid)
            events.append((execution.began, f"began in {execution.pid}, bound to {execution.bound}"))
            if execution.ended is not None:
                events.append((execution.ended, f"ended in {execution.pid}"))
            if execution.raised is not None:
                events.append((execution.raised, f"raised in {execution.pid}: {execution.error}"))
        for row in self.rows.get(message_id, ()):
            text = (
                f"row: {row['error_type']} {row['exception_class']}: {row['error_message'][:300]!r} by {row['worker']}"
            )
            events.append((row["failed_at"].timestamp(), f"{text}, tenant {row['tenant_id']}"))
        if events:
            first, last = min(events)[0] - 15, max(events)[0] + 15
            events += [
                (fault.began, f"    {fault.kind} until {_clock(fault.ended)} {sorted(fault.pids)}")
                for fault in self.faults
                if fault.pids & pids or (not fault.pids and first < fault.ended and fault.began < last)
            ]
        for pid in pids:
            events += [(at, f"    end of a fault, or its own, of {pid}") for at in self._disrupted.get(pid, ())]
        lines = [f"{account}"]
        if message_id in self.kept:
            lines.append(f"in Redis: {self.kept[message_id]}")
        return lines + [f"{_clock(at)} {what}" for at, what in sorted(events)]


def _clock(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%H:%M:%S.%f")[:-3]
