"""``worker check``."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from worker.check import Finding, Status, check_deployment, worst_first
from worker.cli.common import console

_STYLES = {Status.ERROR: "bold red", Status.WARNING: "yellow", Status.OK: "green"}


def check(
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say also what is well.")] = False,
    procfile: Annotated[Path | None, typer.Option(help="Where worker entries stand; ./Procfile if it exists.")] = None,
    stop_timeout: Annotated[
        float, typer.Option(min=1, help="Seconds from SIGTERM to SIGKILL on the host; Heroku's are 30.")
    ] = 30,
) -> None:
    """Tell before a deploy what would break a promise; changes nothing.

    Exit status: 0 where there is nothing worse than a warning, else 2.
    """
    findings = worst_first(check_deployment(procfile=procfile, stop_timeout=stop_timeout))
    good = all(finding.status is not Status.ERROR for finding in findings)
    if as_json:
        typer.echo(json.dumps({"ok": good, "findings": [asdict(finding) for finding in findings]}))
    else:
        _show(findings, verbose=verbose)
    if not good:
        raise typer.Exit(2)


def _show(findings: Sequence[Finding], *, verbose: bool) -> None:
    """Print what is wrong, each with what to do about it, then what is well."""
    for finding in findings:
        if finding.status is not Status.OK or verbose:
            line = Text(f"{finding.status:<9}", _STYLES[finding.status])
            line.append(f"{finding.name}: ", "bold").append(finding.found, "default")
            if finding.advice:
                line.append(f"\n{'':9}{finding.advice}", "cyan")
            # Wrapped by the terminal alone, so that what it advises can be copied.
            console.print(line, soft_wrap=True)
    well = list(dict.fromkeys(finding.name for finding in findings if finding.status is Status.OK))
    if well and not verbose:
        console.print(Text(f"{Status.OK:<9}", _STYLES[Status.OK]).append(", ".join(well), "dim"), soft_wrap=True)
    counts = Counter(finding.status for finding in findings)
    said = [_counted(counts[status], status) for status in (Status.ERROR, Status.WARNING) if counts[status]]
    console.print(Text(", ".join(said) or "All is well.", "bold"))


def _counted(count: int, status: Status) -> str:
    return f"{count} {status}{'' if count == 1 else 's'}"
