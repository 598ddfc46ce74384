"""What the monitors cost a training: idle, under a budget, together, in memory.

    python -m benchmarks.guest                 # everything, about 30 minutes
    python -m benchmarks.guest --only idle memory

idle: a training step with three monitors attached and none due, over one without any, in CPU
    seconds.
budget: the monitors' share of wall-clock with max_overhead=0.05, measured from outside.
together: a monitored step of all three monitors over the dearest of them alone, in wall-clock;
    runs of each in turn, and the median of the rounds' ratios; about 20 minutes.
memory: process memory over 2,000 monitored steps on the digits, with pictures, three times.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.workloads import build
from lightning_vivit import DirectionalDerivativesMonitor, GGNSpectrumMonitor, NTKMonitor
from lightning_vivit.demo import DigitsClassifier, DigitsDataModule

ROUNDS = {  # of all kinds of runs in turn, and steps of each
    "digits": (9, 42),
    "mlp": (9, 42),
    "cnn": (7, 22),
    "3c3d": (5, 12),
    "resnet20": (5, 8),
    "transformer": (3, 8),
    "resnet18": (3, 8),
}
KINDS = (GGNSpectrumMonitor, DirectionalDerivativesMonitor, NTKMonitor)


class Image(pl.LightningModule):
    """A network of the benchmark as a LightningModule."""

    def __init__(self, short: str) -> None:
        super().__init__()
        work = build(short)
        self.net = work.model.train()
        self.data = TensorDataset(work.inputs, work.targets)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.data, batch_size=len(self.data))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Watch(pl.Callback):
    """Seconds of each step, and seconds inside the monitors' hooks."""

    def __init__(self, monitors: list[Any]) -> None:
        self.steps: list[float] = []  # CPU seconds of each step
        self.looks: list[float] = []  # CPU seconds of each step, all monitors
        self.waits: list[float] = []  # the same in wall-clock
        self.began = self.total = self._start = 0.0
        for monitor in monitors:
            hook = monitor.on_train_batch_start

            def timed(*args: Any, hook: Any = hook) -> None:
                start, busy = time.perf_counter(), time.process_time()
                hook(*args)
                self.waits[-1] += time.perf_counter() - start
                self.looks[-1] += time.process_time() - busy

            monitor.on_train_batch_start = timed

    @property
    def inside(self) -> float:
        return sum(self.waits)

    def on_train_start(self, *args: Any) -> None:
        self.began = time.perf_counter()

    def on_train_batch_start(self, *args: Any) -> None:
        self._start = time.process_time()
        self.looks.append(0.0)
        self.waits.append(0.0)

    def on_train_batch_end(self, *args: Any) -> None:
        self.steps.append(time.process_time() - self._start)

    def on_train_end(self, *args: Any) -> None:
        self.total = time.perf_counter() - self.began


def fit(subject: str, monitors: list[Any], logger: Any = False, **limits: Any) -> Watch:
    watch = Watch(monitors)
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            accelerator="cpu",
            logger=pl.loggers.TensorBoardLogger(folder) if logger else False,
            callbacks=[watch, *monitors],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            **{"max_epochs": -1, **limits},
        )
        if subject == "digits":
            trainer.fit(DigitsClassifier(), DigitsDataModule())
        else:
            trainer.fit(Image(subject))
    return watch


class Alternate(pl.Callback):
    """Attaches and detaches monitors in turn within one run, and times the steps of both kinds."""

    def __init__(self, monitors: list[Any], block: int = 8) -> None:
        self.monitors, self.block = monitors, block
        self.medians: list[float] = []  # CPU seconds of a step, of a block without, with, without
        self._steps: list[float] = []
        self._last: float | None = None

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        """A step ends here and the next begins, so that all hooks are between two calls."""
        now = time.process_time()
        if self._last is not None:
            self._steps.append(now - self._last)
        self._last = now
        if trainer.global_step % self.block == 0:
            attached = self.monitors[0] in trainer.callbacks
            if attached == (len(self.medians) % 2 == 1):
                self.medians.append(statistics.median(self._steps))
            others = [found for found in trainer.callbacks if found not in self.monitors]
            trainer.callbacks[:] = others if attached else [*others, *self.monitors]
            self._steps, self._last = [], None  # this step pays for the change

    def ratios(self) -> list[float]:
        """Each block with monitors over the mean of its two neighbours without, sorted."""
        found = self.medians
        return sorted(
            2 * found[i] / (found[i - 1] + found[i + 1]) for i in range(1, len(found) - 1, 2)
        )


def idle() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads that wait for each other count as CPU seconds
    for subject, steps in (("digits", 8000), ("resnet20", 800)):
        silent: list[Any] = [kind(k=2, steps=[10**9]) for kind in KINDS]
        watch = Alternate(silent)
        fit(subject, [watch, *silent], max_steps=steps)
        ratios = watch.ratios()
        first, last = ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]
        error = 0.93 * (last - first) / len(ratios) ** 0.5  # of a median, if normal
        silent = [kind(k=2, steps=[10**9]) for kind in KINDS]
        hooked = fit(subject, silent, max_steps=steps // 20)
        hooks = sum(hooked.looks) / sum(hooked.steps)
        print(
            f"idle, {subject}: step with monitors over without {statistics.median(ratios):.4f} "
            f"+- {error:.4f} ({len(ratios)} blocks of steps in turn, quarters {first:.3f} and "
            f"{last:.3f}); the monitors' hooks are {hooks:.3%} of the steps"
        )
    torch.set_num_threads(threads)


def budget() -> None:
    for subject, seconds in (("digits", 60), ("resnet20", 300)):
        monitors = [kind(k=5, every_n_steps=1, max_overhead=0.05) for kind in KINDS]
        watch = fit(subject, monitors, max_time={"seconds": seconds})
        print(f"budget 5%, {subject}: {watch.inside / watch.total:.2%} of {watch.total:.0f} s")


def together() -> None:
    options: dict[str, Any] = {"k": 5, "every_n_steps": 1, "data": "train"}
    for subject, (count, steps) in ROUNDS.items():
        rounds: list[dict[str, float]] = []
        for _ in range(count):
            found = {}
            for chosen in (*((kind,) for kind in KINDS), KINDS):
                watch = fit(subject, [kind(**options) for kind in chosen], max_steps=steps)
                name = "all" if len(chosen) > 1 else chosen[0].__name__
                # without the first two: the proof, and first allocations
                found[name] = statistics.median(watch.waits[2:])
            rounds.append(found)
        ratios = sorted(
            found["all"] / max(value for name, value in found.items() if name != "all")
            for found in rounds
        )
        middle = {name: statistics.median(found[name] for found in rounds) for name in rounds[0]}
        parts = ", ".join(f"{name} {value:.3f} s" for name, value in middle.items())
        print(
            f"together, {subject}: {statistics.median(ratios):.2f} times the dearest "
            f"({ratios[0]:.2f} to {ratios[-1]:.2f}; {parts})",
            flush=True,
        )


def resident() -> float:
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


class Memory(pl.Callback):
    """MiB of the process at each 50th step, from step 100 on."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.sizes: list[float] = []

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step % 50 == 0 and trainer.global_step >= 100:
            self.steps.append(trainer.global_step)
            self.sizes.append(resident())


def grow(last: int = 2000) -> tuple[list[int], list[float]]:
    """Steps and MiB: all three monitors at every step, with pictures as they come by default."""
    warnings.simplefilter("ignore")  # a process of its own
    record = Memory()
    monitors = [kind(k=5, every_n_steps=1, data="batch", max_samples=16) for kind in KINDS]
    fit("digits", [record, *monitors], logger=True, max_steps=last)
    return record.steps, record.sizes


def memory() -> None:
    for _ in range(3):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
            steps, sizes = fresh.submit(grow).result()
        slope = statistics.linear_regression(steps, sizes).slope * 1000
        print(
            f"memory, digits, all monitors with pictures: {sizes[0]:.1f} MiB at step "
            f"{steps[0]}, {sizes[-1]:.1f} at step {steps[-1]}, lowest "
            f"{min(sizes):.1f}, highest {max(sizes):.1f}, slope {slope:+.2f} MiB per "
            "1,000 monitored steps",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    tasks = {task.__name__: task for task in (idle, budget, together, memory)}
    parser.add_argument("--only", nargs="+", choices=tasks, default=list(tasks))
    warnings.simplefilter("ignore")
    for name in parser.parse_args().only:
        tasks[name]()


if __name__ == "__main__":
    main()
