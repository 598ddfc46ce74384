"""Start the programs of `parallel_runs` and `sharded_runs`, and read what the ranks wrote."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

PROGRAM = Path(__file__).with_name("parallel_runs.py")
ROOT = PROGRAM.parents[2]


def launch(
    name: str, ranks: int, folder: Path, seconds: float = 400, program: Path = PROGRAM
) -> subprocess.CompletedProcess[str]:
    """Run one of a file's programs; it is an error of the test if it does not end in time."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    ours = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    environment = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("PL_", "SLURM")) and key not in ("RANK", "WORLD_SIZE", "MASTER_PORT")
    }
    return subprocess.run(
        [sys.executable, str(program), name, str(ranks), str(folder)],
        env={**environment, **ours},
        capture_output=True,
        text=True,
        timeout=seconds,
    )


def run(name: str, ranks: int, folder: Path, program: Path = PROGRAM) -> Path:
    """Run a program that has to succeed; returns its folder."""
    done = launch(name, ranks, folder, program=program)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def read(folder: Path, name: str, ranks: int) -> list[dict[str, Any]]:
    """What each rank wrote."""
    return [torch.load(folder / f"{name}-{r}.pt", weights_only=False) for r in range(ranks)]
