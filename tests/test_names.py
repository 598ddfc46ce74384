"""One name, one thing: no two modules and no two public classes share a name."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "lightning_vivit"
VIVIT = ("computations.py", "extensions", "linalg", "optim")  # its own paths
FUNCTIONS = PACKAGE / "metrics" / "functional"  # a metric is the mirror of its function


def modules() -> list[Path]:
    found = [path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"]
    own = [path for path in found if path.relative_to(PACKAGE).parts[0] not in VIVIT]
    return [
        path
        for path in own
        if path.parent != FUNCTIONS or not (FUNCTIONS.parent / path.name).exists()
    ]


def repeated(names: list[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]


def test_no_two_modules_share_a_name() -> None:
    assert len(modules()) > 150
    assert repeated([path.stem for path in modules()]) == []


def test_no_two_public_classes_share_a_name() -> None:
    classes = [
        node.name
        for path in PACKAGE.rglob("*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    ]
    assert len(classes) > 100
    assert repeated(classes) == []
