"""The house: imports go down the folders, and files stay small."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lightning_vivit"
CONTRACT = ROOT / "pyproject.toml"
FILES = sorted(PACKAGE.rglob("*.py"))


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return subprocess.run(
        [sys.executable, "-c", code, "--no-cache"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "120"},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the package and its contract."""
    shutil.copytree(PACKAGE, tmp_path / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(CONTRACT, tmp_path)
    return tmp_path


def test_imports_go_down(checkout: Path) -> None:
    done = lint(checkout)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("lower", "upper"),
    [
        ("samples/axis.py", "losses.sample_loss"),
        ("problem/outputs.py", "rules"),
        ("kernel/plan.py", "matrixfree.products"),
        ("evaluation/derivatives.py", "callbacks"),
    ],
)
def test_an_import_up_breaks_the_contract(checkout: Path, lower: str, upper: str) -> None:
    file = checkout / PACKAGE.name / lower
    file.write_text(f"{file.read_text()}\nimport lightning_vivit.{upper}\n")
    done = lint(checkout)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "imports go down BROKEN" in done.stdout
    place = f"{PACKAGE.name}.{lower.removesuffix('.py').replace('/', '.')}"
    assert re.search(rf"{place} ->\s+lightning_vivit\.{upper}", done.stdout)


def layers(text: str) -> list[set[str]]:
    """Lines of a list of layers -> the folders of each."""
    return [set(re.findall(r"\w+", line)) for line in text.splitlines() if line.strip()]


def test_the_design_page_states_the_same_order() -> None:
    found = re.search(r"^layers = \[\n(.*?)^\]", CONTRACT.read_text(), re.DOTALL | re.MULTILINE)
    page = (ROOT / "docs" / "design.md").read_text()
    stated = re.search(r"^```text\n(cli\n.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert found is not None and stated is not None
    assert layers(found[1]) == layers(stated[1])


def test_the_root_holds_only_the_public_faces() -> None:
    modules = {file.stem for file in PACKAGE.glob("*.py")}
    assert modules == {"__init__", "cli", "computations", "errors", "functions", "version"}


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its decorators and its docstring."""
    ends = [node.end_lineno for node in (function, function.body[0])]
    assert ends[0] is not None and ends[1] is not None
    documented = ast.get_docstring(function) is not None
    return ends[0] - (ends[1] if documented else function.lineno - 1)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_files_and_functions_are_small(file: Path) -> None:
    text = file.read_text()
    assert text.count("\n") <= 350
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert code_lines(node) <= 60, node.name
