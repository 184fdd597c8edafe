"""RUNBOOK.md: each alert has its section, each link leads somewhere, and each command is one that there is."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from worker.cli import app

ROOT = Path(__file__).parents[2]
RUNBOOK = (ROOT / "RUNBOOK.md").read_text("utf-8")
GUIDE = (ROOT / "CELERY.md").read_text("utf-8")
SCALING = (ROOT / "SCALING.md").read_text("utf-8")
#: Click's; Typer has a copy of its own.
COMMANDS: Any = typer.main.get_command(app)
#: What is not ours; the first two are run by tests/integration/test_runbook.py.
OTHERS = {"psql", "redis-cli", "date", "docker", "heroku", "celery"}


def sections(level: str) -> dict[str, str]:
    """Return the text below each heading, by how links name it."""
    parts = re.split(rf"^{level} (.+)$", RUNBOOK, flags=re.MULTILINE)
    return {anchor(heading): text for heading, text in zip(parts[1::2], parts[2::2], strict=True)}


def anchor(heading: str) -> str:
    """Return what GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def lines(text: str) -> list[str]:
    """Return the commands of fenced blocks, and those that begin a code span."""
    fenced = [line for block in re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL) for line in block.splitlines()]
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    spans = [span for span in re.findall(r"`([^`]+)`", prose) if re.match(r"(worker|redis-cli|psql) (-|\w)", span)]
    return [line.strip() for line in [*fenced, *spans] if line.strip()]


def alerts() -> Iterator[tuple[str, str]]:
    """Give what Prometheus' rules and the webhook call their alerts, and where they say that each has its section."""
    for path in (ROOT / "worker").rglob("alerts.yml"):
        for group in yaml.safe_load(path.read_text("utf-8"))["groups"]:
            for rule in group["rules"]:
                yield rule["alert"], rule["annotations"]["runbook"]
    if importlib.util.find_spec("worker.alerts") is not None:
        causes: Any = importlib.import_module("worker.alerts.causes")
        for kind in causes.Kind:
            if kind != "test":
                yield str(kind), f"RUNBOOK.md#{kind}"


def test_each_alert_has_its_section_with_a_cause_a_cure_and_a_command() -> None:
    found = sections("###")
    for name, where in alerts():
        assert where == f"RUNBOOK.md#{name.lower()}"
        assert name.lower() in found, name
    for name, text in found.items():
        for word in ("**Cause:**", "**Cure:**", "```sh"):
            assert word in text, name


def test_each_link_leads_somewhere() -> None:
    there = {*sections("##"), *sections("###")}
    links = re.findall(r"\]\(#([^)]+)\)", RUNBOOK)
    assert links
    assert set(links) <= there
    # The table at the top leads to all that is no alert.
    table = RUNBOOK.partition("\n## ")[0]
    assert {name for name in sections("##") if not name.startswith("alerts-of")} <= set(
        re.findall(r"\]\(#([^)]+)\)", table)
    )


def test_what_scaling_says_to_watch_is_there_and_its_links_lead_somewhere() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    named = set(re.findall(r"`(Dramaturg\w+)`", SCALING))
    assert len(named) > 3
    assert named <= {name for name, _ in alerts()}
    metrics = set(re.findall(r"`dramaturg_(\w+)", SCALING))
    assert metrics
    assert all(re.search(rf"^\|.*`{name}`.*\|", readme, flags=re.MULTILINE) for name in metrics)
    headings = {anchor(heading) for heading in re.findall(r"^## (.+)$", readme, flags=re.MULTILINE)}
    assert set(re.findall(r"README\.md#([\w-]+)", SCALING)) <= headings
    assert "(SCALING.md)" in readme


@pytest.mark.parametrize("text", [RUNBOOK, GUIDE, SCALING], ids=["RUNBOOK.md", "CELERY.md", "SCALING.md"])
def test_each_command_is_one_that_there_is(text: str) -> None:
    found = lines(text)
    assert len(found) > 5
    for line in found:
        program, *words = shlex.split(line, comments=True)
        if program == "worker":
            check(line, words)
        else:
            assert program in OTHERS, line


def check(line: str, words: list[str]) -> None:
    """Check that there is such a command, with such options and as many arguments."""
    command = COMMANDS
    if words[0] in {"alerts", "metrics"} and words[0] not in command.commands:
        # Of parts that a deployment may be without.
        return
    while words and not words[0].startswith("-") and hasattr(command, "commands"):
        assert words[0] in command.commands, line
        command = command.commands[words.pop(0)]
    assert not hasattr(command, "commands") or command.invoke_without_command, line
    options = {name: each for each in command.params if each.param_type_name == "option" for name in each.opts}
    if not words or command.context_settings.get("ignore_unknown_options"):
        # Named, and not to be typed.
        return
    given = 0
    while words:
        word = words.pop(0)
        if word.startswith("-"):
            name, equals, _ = word.partition("=")
            assert name in options, f"{line}: {name}"
            if not options[name].is_flag and not equals:
                assert words, line
                words.pop(0)
        else:
            given += 1
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    most = sum(99 if each.nargs < 0 else each.nargs for each in arguments)
    assert sum(each.required for each in arguments) <= given <= most, line
