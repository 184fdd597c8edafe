"""Imports point one way: worker -> middleware -> db."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FORBIDDEN = {"db": {"worker", "middleware"}, "middleware": {"worker"}, "worker": {"tests"}}


def imported(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_direction(package: str) -> None:
    modules = list((ROOT / package).rglob("*.py"))
    assert modules
    wrong = {str(p.relative_to(ROOT)): imported(p) & FORBIDDEN[package] for p in modules}
    assert {path: names for path, names in wrong.items() if names} == {}


@pytest.mark.parametrize("name", ["db", "middleware"])
@pytest.mark.parametrize("form", ["module", "package"])
def test_a_users_package_that_hides_ours_is_named(tmp_path: Path, name: str, form: str) -> None:
    path = tmp_path / f"{name}.py" if form == "module" else tmp_path / name / "__init__.py"
    path.parent.mkdir(exist_ok=True)
    path.write_text("")
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]; import worker.queues"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"'import {name}' finds {path}, which hides the package {name!r} of dramaturg" in done.stderr


@pytest.mark.parametrize("name", ["worker", "db", "middleware"])
def test_the_command_line_names_it_before_a_worker_trips_over_it(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("")
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from worker.__main__ import main; main()"
    # Isolated, as a console script is: the current folder is not on sys.path.
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert f"{tmp_path / name / '__init__.py'} hides the package {name!r} of dramaturg" in done.stderr
    assert done.returncode == 1
