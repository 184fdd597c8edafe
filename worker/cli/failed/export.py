"""``worker failed export``: rows for programs and spreadsheets, however many there are."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO, Annotated, Any, Final

import typer

from db.failed import FailedJob, iterate
from worker.cli.common import fail
from worker.cli.failed.options import access, filtered
from worker.failed.asked import Asked, to_filter
from worker.text import counted, printable, to_json

#: A spreadsheet runs what begins so, in any of its widths. https://owasp.org/www-community/attacks/CSV_Injection
_FORMULA: Final = tuple("=+-@\t\r\n＝＋－＠")  # noqa: RUF001 - full-width ones
#: Characters of a cell: a spreadsheet takes 32,767.
_CELL: Final = 32_000
#: Every column, in the order of the table.
COLUMNS: Final = tuple(field.name for field in fields(FailedJob))


class Format(StrEnum):
    """What is written."""

    JSONL = "jsonl"
    CSV = "csv"


@filtered
def export(
    asked: Asked,
    format_: Annotated[Format, typer.Option("--format", help="JSON Lines keeps everything as it is.")] = Format.JSONL,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A file; standard output by default.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file where it exists.")] = False,
) -> None:
    """Write all failed jobs that match, newest first, whatever their status; redacted, as they are stored.

    A file is there in full or not at all. Cells of CSV that a spreadsheet would run begin with an apostrophe.
    """
    with access(asked.as_tenant) as work:
        if output is not None and not force and output.exists():
            fail(f"{output} exists: --force replaces it")
        with work.begin() as session:
            where = to_filter(session, asked, work.now)
            jobs = iterate(session, where)
            if output is None:
                _write(jobs, format_, sys.stdout)
                sys.stdout.flush()
                return
            with _file(output) as stream:
                written = _write(jobs, format_, stream)
    sys.stderr.write(f"{counted(written, 'job')} written to {output}\n")


@contextmanager
def _file(output: Path) -> Iterator[IO[str]]:
    """Give a file beside ``output`` that takes its place once the block has ended well."""
    with NamedTemporaryFile(
        "w", encoding="utf-8", newline="", dir=output.parent, prefix=f".{output.name}.", delete=False
    ) as stream:
        temporary = Path(stream.name)
        try:
            yield stream
            stream.close()
            temporary.replace(output)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _write(jobs: Iterator[FailedJob], format_: Format, stream: IO[str]) -> int:
    """Write jobs as they come, and return how many."""
    line = _csv_lines() if format_ is Format.CSV else _json_line
    written = 0
    if format_ is Format.CSV:
        stream.write(_row(COLUMNS))
    for job in jobs:
        stream.write(line(job))
        written += 1
    return written


def _json_line(job: FailedJob) -> str:
    return f"{to_json(job)}\n"


def _csv_lines() -> Callable[[FailedJob], str]:
    return lambda job: _row([cell(getattr(job, name)) for name in COLUMNS])


def _row(cells: Any) -> str:
    buffer = io.StringIO()
    csv.writer(buffer).writerow(cells)
    return buffer.getvalue()


def cell(value: object) -> str:
    """Return a value as a cell that no spreadsheet runs."""
    match value:
        case None:
            return ""
        case bool() | int() | float():
            return str(value)
        case datetime():
            return value.isoformat()
        case list() | dict():
            text = json.dumps(value, ensure_ascii=False)
        case _:
            text = str(value)
    text = printable(text)
    if text.lstrip().startswith(_FORMULA) or text.startswith(_FORMULA):
        text = f"'{text}"
    return text if len(text) <= _CELL else f"{text[:_CELL]}… [{len(text) - _CELL:,} more characters]"
