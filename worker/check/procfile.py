"""The worker entries of a Procfile: whether they do what the README asks of them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath

from middleware.dramatiq_internals import CommandLine, read_command_line
from worker.check.findings import Finding, error, ok, warning
from worker.queues import Queue

_ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)
_VARIABLE = re.compile(r"\$(?:\{([A-Za-z_]\w*)(?::?-([^}]*))?\}|([A-Za-z_]\w*))")


@dataclass(frozen=True, slots=True)
class Entry:
    """A process of the Procfile that runs ``dramatiq``."""

    name: str
    command: CommandLine
    #: What its command sets beside the environment, by ``env`` or in front of it.
    environment: Mapping[str, str] = field(default_factory=dict)


def read_entries(commands: Mapping[str, str], environ: Mapping[str, str]) -> tuple[list[Entry], list[Finding]]:
    """Return the entries that run ``dramatiq``, and an error for each that cannot be read.

    Arguments:
      commands: Of the Procfile, by name.
      environ: For the variables that they refer to.
    """
    entries, wrong = list[Entry](), list[Finding]()
    for name, command in commands.items():
        try:
            found = _read_entry(name, command, environ)
        except ValueError as e:
            wrong.append(
                error("procfile.command", f"{name}: dramatiq would refuse its command: {e}", f"Mend entry {name}.")
            )
        else:
            if found is not None:
                entries.append(found)
    return entries, wrong


def _read_entry(name: str, command: str, environ: Mapping[str, str]) -> Entry | None:
    expanded = _VARIABLE.sub(lambda m: environ.get(m[1] or m[3]) or m[2] or m[0], command)
    words = shlex.split(expanded)
    place = next((i for i, word in enumerate(words) if PurePath(word).name in {"dramatiq", "dramatiq-gevent"}), None)
    if place is None:
        return None
    assigned = (_ASSIGNMENT.fullmatch(word) for word in words[:place])
    until = next((i for i, word in enumerate(words) if i > place and word in {"&&", "||", ";", "|", "&"}), len(words))
    return Entry(name, read_command_line(words[place + 1 : until]), {a[1]: a[2] for a in assigned if a})


def judge_processes(entries: Iterable[Entry]) -> Iterator[Finding]:
    """Judge whether the entries say how many processes they are."""
    silent = [entry.name for entry in entries if entry.command.processes is None]
    if silent:
        yield warning(
            "procfile.processes",
            f"{', '.join(silent)}: without --processes, dramatiq starts one for each processor it sees, and on a "
            "shared host it sees them all",
            "Say --processes 1, or how many it should be.",
        )


#: Seconds that Dramatiq's main process may take to notice that its processes have ended, and to end itself.
MAIN_PROCESS = 2.0


def judge_stop_timeouts(entries: Iterable[Entry], stop_timeout: float, stop_within: float = 20.0) -> Iterator[Finding]:
    """Judge whether workers end before their host kills them, and not before they have given back what they hold.

    Arguments:
      entries: Those that run dramatiq.
      stop_timeout: Seconds from SIGTERM to SIGKILL on the host.
      stop_within: What the settings say, where an entry does not say its own.
    """
    for entry in entries:
        try:
            within = float(entry.environment.get("STOP_WITHIN") or stop_within)
        except ValueError:
            # The entry's own settings say what is wrong with it, when it starts.
            continue
        if within + MAIN_PROCESS > stop_timeout:
            yield error(
                "procfile.stop-timeout",
                f"{entry.name}: ends within {within:g} s, but the host kills it after {stop_timeout:g} s, and a job "
                "that is killed counts as one that kills",
                f"STOP_WITHIN={max(1, int(stop_timeout - MAIN_PROCESS))}, or a longer stop timeout of the host (and "
                "then --stop-timeout here)",
            )
        asked = entry.command.shutdown_timeout
        if asked is not None and asked < within * 1000:
            yield error(
                "procfile.stop-timeout",
                f"{entry.name}: --worker-shutdown-timeout {asked} ends it before its jobs are interrupted and their "
                f"statements cancelled, which STOP_WITHIN does within {within:g} s",
                "Leave the option out.",
            )


def consoles(commands: Mapping[str, str]) -> list[str]:
    """Return the entries that serve the console."""
    return [name for name, command in commands.items() if re.search(r"\bworker console\b(?! token)", command)]


def judge_console(commands: Mapping[str, str], environ: Mapping[str, str]) -> Iterator[Finding]:
    """Judge whether the console will start where the host gives it a port to be open on.

    Arguments:
      commands: Of the Procfile, by name.
      environ: The settings.
    """
    serving = consoles(commands)
    if serving and not environ.get("CONSOLE_TOKENS"):
        yield warning(
            "procfile.console",
            f"{', '.join(serving)}: without CONSOLE_TOKENS the console refuses to start where the host sets PORT",
            "worker console token NAME --role operator makes a token, and says what to set; or leave the entry out.",
        )


def judge_schedule(commands: Mapping[str, str], scheduled: Collection[str], off: Collection[str]) -> Finding | None:
    """Judge whether somebody will send what has a schedule; None where nothing has.

    Arguments:
      commands: Of the Procfile, by name.
      scheduled: The actors that have one.
      off: Those of them that the settings switch off.
    """
    nobodys = sorted(set(scheduled).difference(off))
    if not nobodys:
        return None
    if not any(re.search(r"\bworker scheduler\b", command) for command in commands.values()):
        return warning(
            "procfile.scheduler",
            f"no entry is a scheduler, and nothing sends {', '.join(nobodys)}",
            "Add an entry, scheduler: worker scheduler; or say SCHEDULE_OFF.",
        )
    return ok("procfile.scheduler", f"an entry sends what has a schedule ({len(nobodys)})")


def judge_queues(
    entries: Collection[Entry], consumed: Mapping[str, Collection[str] | None], declared: Collection[str]
) -> Finding:
    """Judge whether somebody will consume every queue.

    Arguments:
      entries: Those that run dramatiq.
      consumed: The queues of each entry, by its name; None for all.
      declared: The queues that messages may be sent to.
    """
    if any(consumed[entry.name] is None for entry in entries):
        return ok("procfile.queues", "every declared queue is consumed")
    nobodys = sorted(set(declared).difference(*(consumed[entry.name] or () for entry in entries)))
    if nobodys:
        return error(
            "procfile.queues",
            f"no entry consumes {', '.join(nobodys)}: what is sent there waits for ever",
            "; ".join(
                f"{queue}: dramatiq {f'worker.{queue}' if queue in set(Queue) else 'MODULE'} --processes 1"
                for queue in nobodys
            ),
        )
    return ok("procfile.queues", f"each of {len(declared)} queues has an entry")
