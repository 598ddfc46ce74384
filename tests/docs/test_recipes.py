"""The recipes of docs/design.md, carried out in a copy of the package as they stand there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_vivit

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "design.md").read_text()
RECIPES = dict(re.findall(r"^### How to add (.+?)\n(.*?)(?=^##)", PAGE, re.DOTALL | re.MULTILINE))
NAMES = ["an operation's rule", "a loss", "a statistic", "a logger", "a matrix"]


def blocks(text: str) -> list[tuple[str, str, str]]:
    """The file that is named last before each fenced block, its language, its text."""
    found, start = [], 0
    for fence in re.finditer(r"^```(python|diff)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        files = re.findall(r"`((?:lightning_vivit|tests)/[\w/]+\.py)`", text[start : fence.start()])
        found.append((files[-1], fence[1], fence[2]))
        start = fence.end()
    return found


def change(text: str, diff: str) -> str:
    """Apply a diff without line numbers: each line is looked for from the last one on."""
    lines, place = text.splitlines(), 0
    for line in diff.splitlines():
        mark, content = line[:1], line[1:]
        if mark == "+":
            lines.insert(place, content)
            place += 1
        else:
            place = lines.index(content, place)
            if mark == "-":
                del lines[place]
            else:
                place += 1
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package with everything that the recipes add."""
    folder = tmp_path_factory.mktemp("recipes")
    ignored = shutil.ignore_patterns("__pycache__")
    source = Path(lightning_vivit.__file__).parent  # of the checkout, or of an installed wheel
    shutil.copytree(source, folder / "lightning_vivit", ignore=ignored)
    shutil.copytree(ROOT / "docs", folder / "docs")
    shutil.copy(ROOT / "pyproject.toml", folder)
    for text in RECIPES.values():
        for name, language, content in blocks(text):
            path = folder / name
            if language == "diff":
                path.write_text(change(path.read_text(), content))
            else:
                assert not path.exists(), f"{name} is not new"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(content)
    return folder


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_there_is_a_recipe_for_each_thing() -> None:
    assert list(RECIPES) == NAMES
    for text in RECIPES.values():
        assert [language for _, language, _ in blocks(text)] == ["python", "diff", "python"]


@pytest.mark.parametrize("name", NAMES)
def test_recipe(changed: Path, name: str) -> None:
    *_, (test, _, _) = blocks(RECIPES[name])
    done = run(changed, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", ".", test)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_new_statistic_is_in_the_table_of_keys(changed: Path) -> None:
    command = re.search(r"`python (docs/[\w/]+\.py)`", RECIPES["a statistic"])
    assert command is not None
    done = run(changed, command[1])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "`ggn/top_share`" in (changed / "docs" / "keys.md").read_text()
