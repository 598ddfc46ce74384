"""A long run: its event files stay small, and the process does not grow."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
import pytest
from digits_run import fit, monitors

pytestmark = pytest.mark.long

STEPS, EVERY = 10_000, 100
MEBIBYTE = 2**20


def resident() -> float:
    """MiB of memory that the process holds."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


class Watcher(pl.Callback):
    def __init__(self) -> None:
        self.memory: list[float] = []

    def on_train_batch_end(self, trainer, *arguments) -> None:
        if trainer.global_step % 500 == 0:
            self.memory.append(resident())


def test_ten_thousand_steps(tmp_path):
    watcher = Watcher()
    found = monitors(k=10, every_n_steps=EVERY, max_samples=64)
    folder = fit(tmp_path, *found, watcher, steps=STEPS, epochs=-1)
    size = sum(path.stat().st_size for path in folder.rglob("events*"))
    assert MEBIBYTE < size < 50 * MEBIBYTE
    assert len(watcher.memory) == STEPS // 500
    warm = watcher.memory[3:]
    assert max(warm[len(warm) // 2 :]) - max(warm[: len(warm) // 2]) < 30
