"""Every program runs once, in one process for each number of ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from parallel_launch import run

# torch 2.6 cannot train with FSDP2 on a CPU at all (AttributeError: no record_event)
collect_ignore = [] if hasattr(torch.cpu.Stream, "record_event") else ["test_sharded.py"]


@pytest.fixture(scope="session")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks wrote."""
    return run("everything", 2, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="session")
def four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What four ranks wrote."""
    return run("everything", 4, tmp_path_factory.mktemp("four"))
