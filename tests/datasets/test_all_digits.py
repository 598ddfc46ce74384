"""The kernel of all 1,797 digits and the demonstration CNN, whole and interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_vivit import empirical_ntk, ntk_between
from lightning_vivit.datasets.block_rows import RowMaker
from lightning_vivit.demo import DigitsClassifier, DigitsDataModule

PROGRAM = """
import sys
from datasets.test_all_digits import problem
from lightning_vivit import ntk_between
model, loader = problem()
ntk_between(model, loader, mode="trace", block_size=64, out=sys.argv[1])
"""
SIZES = {"trace": (256, 256), "full": (128, 512)}  # block size and MiB of budget
PICKED = torch.tensor([0, 1, 127, 128, 900, 1795, 1796])


def problem() -> tuple[DigitsClassifier, DataLoader[Any]]:
    torch.manual_seed(0)
    data = DigitsDataModule()
    data.setup()
    pairs = zip(data.train_set.tensors, data.val_set.tensors, strict=True)
    whole = TensorDataset(*(torch.cat(pair) for pair in pairs))
    return DigitsClassifier(), DataLoader(whole, batch_size=100)


class AnonymousMemory:
    """Peak of the process's memory without mapped files, in MiB over the start (Linux)."""

    def __enter__(self) -> AnonymousMemory:
        self._start = self.peak = self._now()
        self._watching = True
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._watching = False
        self._thread.join()

    @property
    def grown(self) -> float:
        return self.peak - self._start

    def _watch(self) -> None:
        while self._watching:
            self.peak = max(self.peak, self._now())
            time.sleep(0.01)

    @staticmethod
    def _now() -> float:
        status = Path("/proc/self/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("RssAnon"))
        return int(line.split()[1]) / 1024


@pytest.mark.long
@pytest.mark.parametrize("mode", SIZES)
def test_all_digits(mode: str, tmp_path: Path) -> None:
    model, loader = problem()
    other = DataLoader(loader.dataset, batch_size=77)
    model.eval()
    images = loader.dataset.tensors[0][PICKED]
    expected = empirical_ntk(model, images, mode=mode)
    block_size, budget = SIZES[mode]
    with AnonymousMemory() as memory:
        found = ntk_between(
            model,
            loader,
            other if mode == "trace" else None,
            mode=mode,
            out=tmp_path / "kernel.npy",
            block_size=block_size,
            max_memory=budget * 2**20,
            progress=False,
        )
    assert memory.grown < budget
    outputs = (10, 10) if mode == "full" else ()
    assert found.shape == (1797, 1797, *outputs)
    part = found[PICKED][:, PICKED]
    assert float((part - expected).abs().max() / expected.abs().max()) < 1e-5
    for start in range(0, 1797, 300):  # no entry is left out, and both triangles agree
        rows = found[start : start + 300]
        mirrored = found[:, start : start + 300].transpose(0, 1)
        mirrored = mirrored.transpose(2, 3) if mode == "full" else mirrored
        assert torch.allclose(rows, mirrored, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
        own = rows[torch.arange(len(rows)), torch.arange(start, start + len(rows))]
        trace = own if mode == "trace" else own.diagonal(dim1=1, dim2=2).sum(1)
        assert bool((trace > 0).all())


@pytest.mark.long
def test_a_killed_process_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "kernel.npy"
    journal = tmp_path / "kernel.npy.journal"
    root = Path(__file__).parents[2]
    paths = os.pathsep.join([str(root), str(root / "tests")])
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(out)],
        env={**os.environ, "PYTHONPATH": paths},
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 100
    while not journal.exists() or journal.read_text().count("\n") < 20:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    chunks = -(-1797 // 64)
    known = journal.read_text().count("\n") - 1
    assert 19 <= known < chunks * (chunks + 1) // 2
    computed = 0
    plain = RowMaker.multiply

    def watched(*args: Any) -> Any:
        nonlocal computed
        computed += 1
        return plain(*args)

    monkeypatch.setattr(RowMaker, "multiply", watched)
    model, loader = problem()
    found = ntk_between(model, loader, mode="trace", out=out, progress=False)
    assert computed == chunks * (chunks + 1) // 2 - known
    once = ntk_between(model, loader, mode="trace", block_size=64, progress=False)
    assert torch.allclose(found, once, rtol=1e-5, atol=1e-5 * float(once.abs().max()))
