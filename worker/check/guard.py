"""Keeps what goes wrong inside a check from ending the others, and the time that all of them take bounded."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from time import monotonic

from sqlalchemy.exc import DBAPIError

from middleware.redaction import REDACTED, Redactor
from worker.check.findings import Finding, error

#: Characters of an error's text that are shown.
_SHOWN = 400


class Guard:
    """Runs checks.

    Arguments:
      secrets: Passwords, which no driver should repeat, and which are taken out of what it says if it does.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        # One that is shorter guards nothing, and would take ordinary words apart.
        self._secrets = sorted((s for s in secrets if len(s) >= 4), key=len, reverse=True)
        self._redactor = Redactor()

    def run(
        self, name: str, check: Callable[[], Iterable[Finding]], *, about: str = "", advice: str = ""
    ) -> list[Finding]:
        """Return what ``check`` finds; where it raised, up to there, and then an error.

        Arguments:
          name: Of that error.
          check: What may raise. An exception's text may hold values, so it comes redacted.
          about: What stands before that text.
          advice: What to do about it.
        """
        findings: list[Finding] = []
        try:
            # One at a time: what it found before it raised is kept.
            for finding in check():
                findings.append(finding)  # noqa: PERF402
        except Exception as e:  # noqa: BLE001 - a check that fails is a finding
            found = f"{about}: {self.explain(e)}" if about else self.explain(e)
            findings.append(error(name, found, advice or "See to what it says, then check again."))
        return findings

    def explain(self, e: BaseException) -> str:
        """Return the text of an exception in one line, without secrets."""
        said = e.orig if isinstance(e, DBAPIError) and e.orig is not None else e
        text = " ".join(str(said).split())
        for secret in self._secrets:
            text = text.replace(secret, REDACTED)
        return self._redactor.text(text, _SHOWN) or type(said).__name__


@dataclass(frozen=True, slots=True)
class Task:
    """Checks that wait for one server.

    Arguments:
      run: Does not raise.
      seconds: That they may take.
      late: What is found where they take longer.
    """

    run: Callable[[], list[Finding]]
    seconds: float
    late: Finding


def run_together(tasks: Sequence[Task]) -> list[Finding]:
    """Run ``tasks`` side by side, and return what they found in their order.

    One that does not end in time is left behind in a daemon thread, because nothing ends a thread that waits for a
    server.
    """
    found: dict[int, list[Finding]] = {}

    def run(place: int) -> None:
        found[place] = tasks[place].run()

    threads = [
        threading.Thread(target=run, args=[place], name=f"check {task.late.name}", daemon=True)
        for place, task in enumerate(tasks)
    ]
    started = monotonic()
    for thread in threads:
        thread.start()
    for thread, task in zip(threads, tasks, strict=True):
        thread.join(max(0.0, started + task.seconds - monotonic()))
    ended = dict(found)
    return [finding for place, task in enumerate(tasks) for finding in ended.get(place, [task.late])]
