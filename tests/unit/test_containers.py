"""The Dockerfile and compose.yaml say what the Procfile, the settings and the package say."""

from __future__ import annotations

import re
import shlex
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from worker.check.procfile import MAIN_PROCESS
from worker.procfile import read_procfile
from worker.settings import Settings

ROOT = Path(__file__).parents[2]
PROCFILE = read_procfile(ROOT / "Procfile")
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))["services"]
OURS = {name: service for name, service in SERVICES.items() if service["image"] == "dramaturg"}
DOCKERFILE = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text("utf-8"))


def instructions(name: str) -> list[str]:
    return re.findall(rf"^{name} (.+)$", DOCKERFILE, flags=re.MULTILINE)


def test_each_entry_is_a_service_with_the_same_command() -> None:
    assert {name: service["command"] for name, service in OURS.items()} == PROCFILE
    assert SERVICES.keys() - OURS.keys() == {"postgres", "valkey"}


def test_a_host_waits_longer_than_workers_take_to_stop() -> None:
    stop_within = float(Settings.model_fields["stop_within"].default)
    for service in OURS.values():
        assert float(service["stop_grace_period"].removesuffix("s")) >= stop_within + MAIN_PROCESS


def test_all_start_once_the_tables_are_there_and_start_again_when_they_end() -> None:
    release = OURS["release"]
    assert release["restart"] == "no"
    assert set(release["depends_on"]) == {"postgres", "valkey"}
    for name, service in OURS.items():
        if name != "release":
            assert service["depends_on"] == {"release": {"condition": "service_completed_successfully"}}
            assert service["restart"] == "unless-stopped"


def test_settings_are_ours_and_nobody_is_a_superuser() -> None:
    users = dict[str, set[str]]()
    for service in OURS.values():
        for name, value in service["environment"].items():
            assert name.lower() in Settings.model_fields
            if name.endswith("DATABASE_URL"):
                users.setdefault(name, set()).add(str(urlsplit(re.sub(r"\$\{.*?\}", "p", value)).username))
    assert users == {
        "DATABASE_URL": {"worker_login"},
        "OPERATOR_DATABASE_URL": {"operator_login"},
        "MIGRATION_DATABASE_URL": {"release_login"},
    }
    # The owner's password is for migrations alone.
    assert [name for name, service in OURS.items() if "MIGRATION_DATABASE_URL" in service["environment"]] == ["release"]


def test_passwords_are_asked_for_and_not_written_down() -> None:
    text = (ROOT / "compose.yaml").read_text("utf-8")
    text = re.sub(r"\$\{(\w+):\?[^}]*\}", r"${\1}", text)
    written = [a or b for a, b in re.findall(r"_PASSWORD: (\S+)|://\w+:(\S+?)@", text)]
    assert len(written) == 7
    assert all(re.fullmatch(r"\$\{\w+_PASSWORD\}", value) for value in written)


def test_the_readme_says_which_variables_there_must_be() -> None:
    text = (ROOT / "compose.yaml").read_text("utf-8")
    (block,) = [b for b in re.findall(r"```sh\n(.*?)```", readme(), flags=re.DOTALL) if "docker compose up" in b]
    required = set(re.findall(r"\$\{(\w+):\?", text))
    assert required == {f"{name}_PASSWORD" for name in ("POSTGRES", "RELEASE", "WORKER", "OPERATOR")}
    assert all(name in block for name in {*(n.removesuffix("_PASSWORD") for n in required), "CONSOLE_TOKENS"})


def readme() -> str:
    return (ROOT / "README.md").read_text("utf-8")


def test_redis_keeps_what_it_accepted() -> None:
    words = shlex.split(SERVICES["valkey"]["command"])
    options = dict(zip(words[1::2], words[2::2], strict=True))
    assert options["--appendonly"] == "yes"
    assert options["--appendfsync"] == "always"
    assert options["--maxmemory-policy"] == "noeviction"


def test_the_image_is_made_of_what_the_wheel_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {*wheel["packages"], *wheel["force-include"], "pyproject.toml", "README.md"}
    copied = {word.removeprefix("./") for line in instructions("COPY") for word in line.split()[:-1]}
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line[:1] == "!"}
    assert needed <= copied
    assert needed | {"LICENSE"} == let_through
    (extras,) = (line.partition("=")[2] for line in instructions("ARG") if line.startswith("EXTRAS="))
    assert set(extras.split(",")) <= set(project["project"]["optional-dependencies"])
    (python,) = (line.partition("=")[2] for line in instructions("ARG") if line.startswith("PYTHON="))
    assert any(fnmatch(c, f"*:: {python}") for c in project["project"]["classifiers"])


def test_the_image_stops_as_it_should_and_is_nobody() -> None:
    assert instructions("ENTRYPOINT") == ['["tini", "--"]']
    assert instructions("STOPSIGNAL") == ["SIGTERM"]
    (user,) = instructions("USER")
    assert int(user) > 0
    # By a shell there would be somebody between the signal and the worker.
    assert all(command.startswith("[") for command in instructions("CMD"))
    assert not re.search(r"PASSWORD|SECRET|TOKEN|_KEY|_URL", DOCKERFILE)
