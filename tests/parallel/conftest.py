"""Every program runs once, in one process for each number of ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
from parallel_launch import run


@pytest.fixture(scope="session")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks wrote."""
    return run("everything", 2, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="session")
def four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What four ranks wrote."""
    return run("everything", 4, tmp_path_factory.mktemp("four"))
