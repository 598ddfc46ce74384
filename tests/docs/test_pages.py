"""README and documentation: code runs, commands parse, names exist, links resolve."""

from __future__ import annotations

import ast
import copy
import importlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import yaml

import lightning_vivit
import lightning_vivit.version
from lightning_vivit.cli import main
from lightning_vivit.losses import known_losses as losses
from lightning_vivit.problem.tape import recorder as recording
from lightning_vivit.rules import registry as rules

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
RUN = [page for page in PAGES if page.name != "design.md"]  # whose recipes have tests of their own
TEXTS = [ROOT / "README.md", *PAGES]
NAMES = [str(page.relative_to(ROOT)) for page in TEXTS]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


@pytest.fixture
def registries() -> Iterator[None]:
    """What a page registers is forgotten after it."""
    tables: list[dict[Any, Any]] = [rules._RULES, losses._RULES, recording.LOSS_FUNCTIONS]
    before = [copy.copy(table) for table in tables]
    yield
    for table, kept in zip(tables, before, strict=True):
        table.clear()
        table.update(kept)


@pytest.mark.parametrize("page", [p for p in RUN if blocks(p, "python")], ids=lambda p: p.stem)
def test_python_blocks_run_in_order(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registries: None
) -> None:
    monkeypatch.chdir(tmp_path)
    L.seed_everything(0)
    namespace: dict[str, Any] = {"__name__": f"docs_{page.stem}"}
    for number, block in enumerate(blocks(page, "python")):
        exec(compile(block, f"{page.name}, block {number}", "exec"), namespace)


def commands(page: Path) -> Iterator[str]:
    """The `lightning-vivit fit` commands in bash blocks (one a line) and in the text."""
    lines = [line for block in blocks(page, "bash") for line in block.splitlines()]
    parts = [part for line in lines for part in line.split("&&")]
    for text in [*parts, *re.findall(r"`([^`]+)`", prose(page))]:
        if "lightning-vivit fit" in text:
            yield " ".join(text.split())


COMMANDS = sorted({command for page in TEXTS for command in commands(page)})


@pytest.mark.parametrize("command", COMMANDS)
def test_command_parses(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program, *arguments = shlex.split(command)
    assert Path(program).name == "lightning-vivit"
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", sys.argv[:1])
    if not any(argument.startswith("--trainer.callbacks.help") for argument in arguments):
        arguments.append("--print_config")
    with pytest.raises(SystemExit) as done:
        main(arguments)
    assert done.value.code == 0, capsys.readouterr().err


def test_commands_were_found() -> None:
    assert "lightning-vivit fit --config configs/digits.yaml" in COMMANDS


@pytest.mark.parametrize("page", TEXTS, ids=NAMES)
def test_yaml_blocks_name_real_classes(page: Path) -> None:
    for block in blocks(page, "yaml"):
        for entry in yaml.safe_load(block)["trainer"]["callbacks"]:
            module, _, name = entry["class_path"].rpartition(".")
            getattr(importlib.import_module(module), name)(**entry.get("init_args", {}))


@pytest.mark.parametrize("page", TEXTS, ids=NAMES)
def test_names_exist(page: Path) -> None:
    """Every `lightning_vivit.a.b` in the text can be imported."""
    for dotted in set(re.findall(r"`(lightning_vivit(?:\.\w+)+)`", prose(page))):
        found: Any = lightning_vivit
        path = "lightning_vivit"
        for part in dotted.split(".")[1:]:
            path = f"{path}.{part}"
            if not hasattr(found, part):
                importlib.import_module(path)
            found = getattr(found, part)


@pytest.mark.parametrize("page", TEXTS, ids=NAMES)
def test_files_named_in_the_text_exist(page: Path) -> None:
    pattern = r"(?<!Its test, here[ \n])`((?:examples|configs|tests|benchmarks)/[\w./-]+)`"
    missing = [name for name in re.findall(pattern, prose(page)) if not (ROOT / name).exists()]
    assert not missing
    for script in re.findall(r"python (examples/[\w/]+\.py)", page.read_text()):
        assert (ROOT / script).exists()


def test_every_story_shows_its_script() -> None:
    page = (ROOT / "docs" / "stories" / "index.md").read_text()
    shown = re.findall(r'^    --8<-- "([^"]+)"$', page, re.MULTILINE)
    scripts = {f"examples/stories/{path.name}" for path in (ROOT / "examples/stories").glob("*.py")}
    assert set(shown) == scripts - {"examples/stories/digits_runs.py"}
    for script in shown:
        ast.parse((ROOT / script).read_text())


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as the site and GitHub make them."""
    found = set()
    for heading in re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE):
        plain = re.sub(r"[^\w\s-]", "", re.sub(r"[`*]", "", heading)).strip().lower()
        found.add(re.sub(r"\s", "-", plain))
    return found


@pytest.mark.parametrize("page", TEXTS, ids=NAMES)
def test_relative_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert ROOT in file.parents, target
        assert not anchor or anchor in anchors(file), target


def test_every_page_is_in_the_navigation() -> None:
    def files(entry: Any) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        children = entry.values() if isinstance(entry, dict) else entry
        return [file for child in children for file in files(child)]

    text = (ROOT / "mkdocs.yml").read_text()
    listed = files(yaml.safe_load(text)["nav"])
    assert sorted(listed) == sorted(str(page.relative_to(ROOT / "docs")) for page in PAGES)


def test_the_citation_names_this_version_and_the_papers() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == lightning_vivit.version.__version__
    papers = {entry["identifiers"][0]["value"] for entry in citation["references"]}
    assert papers == {"arXiv:2106.02624", "arXiv:1912.10985", "arXiv:1806.07572"}


@pytest.mark.long
def test_the_site_builds_without_a_warning_and_needs_no_network(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not re.search(r"^WARNING", done.stdout + done.stderr, re.MULTILINE)
    loaded = re.compile(r'<(?:script|link|img|iframe)[^>]+(?:src|href)="?(https?:[^" >]+)')
    for page in tmp_path.rglob("*.html"):
        assert not loaded.findall(page.read_text()), page
    assert "<math" in (tmp_path / "concepts.html").read_text()
    stories = (tmp_path / "stories" / "index.html").read_text()
    assert stories.count("digits_runs") >= 5  # the scripts are there
