"""A monitored run is bit-identical to the same run without monitors."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monitor_toys import Classifier, Delicate, NoisyDataset, RecordingLogger, loader, trainer
from torch import Tensor

from lightning_vivit.callbacks import DirectionalDerivativesMonitor, GGNSpectrumMonitor, NTKMonitor
from lightning_vivit.problem.problem import Problem

OWN = ("ggn/", "directions/", "ntk/", "cost/")


def monitors(**options: Any) -> list[pl.Callback]:
    kinds = (GGNSpectrumMonitor, DirectionalDerivativesMonitor, NTKMonitor)
    return [kind(k=3, every_n_steps=2, on_error="raise", **options) for kind in kinds]


def run(root: Path, module: pl.LightningModule, callbacks: list[pl.Callback]) -> dict[str, Any]:
    """Everything that a run leaves behind."""
    pl.seed_everything(7)
    for layer in module.modules():
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()  # type: ignore[operator]
    log = RecordingLogger()
    data = NoisyDataset()
    fit = trainer(
        root, *callbacks, max_epochs=2, logger=log, log_every_n_steps=1, num_sanity_val_steps=1
    )
    fit.fit(module, loader(data, shuffle=True), loader())
    own = [
        (step, {k: v for k, v in row.items() if not k.startswith(OWN)}) for step, row in log.rows
    ]
    numpy_state = np.random.get_state()
    return {
        "state": module.state_dict(),
        "optimizer": fit.optimizers[0].state_dict(),
        "modes": [child.training for child in module.modules()],
        "gradients": [None if p.grad is None else p.grad.clone() for p in module.parameters()],
        "needs_gradient": [p.requires_grad for p in module.parameters()],
        "hooks": [len(child._forward_hooks) for child in module.modules()],
        "attributes": sorted(vars(module)),
        "class": type(module),
        "seen": getattr(module, "seen", None),
        "rows": [(step, row) for step, row in own if row],
        "torch": torch.get_rng_state(),
        "numpy": numpy_state[1],
        "python": random.getstate(),
        "data": (data.reads, data.generator.bit_generator.state),
        "monitored": {key for _, row in log.rows for key in row if "/" in key},
    }


def differences(first: Any, second: Any, where: str = "") -> list[str]:
    if isinstance(first, torch.Tensor):
        return [] if torch.equal(first, second) else [where]
    if isinstance(first, np.ndarray):
        return [] if np.array_equal(first, second) else [where]
    if isinstance(first, dict):
        found = [] if first.keys() == second.keys() else [f"{where} keys"]
        return found + [
            path
            for key in first
            if key in second
            for path in differences(first[key], second[key], f"{where}.{key}")
        ]
    if isinstance(first, (list, tuple)):
        found = [] if len(first) == len(second) else [f"{where} length"]
        return found + [
            path
            for index, pair in enumerate(zip(first, second, strict=False))
            for path in differences(*pair, f"{where}[{index}]")
        ]
    return [] if first == second else [where]


@pytest.mark.parametrize("data", ["batch", "train", "val"])
def test_all_monitors_leave_the_run_as_it_is(tmp_path: Path, data: str) -> None:
    plain = run(tmp_path, Delicate(), [])
    watched = run(tmp_path, Delicate(), monitors(data=data))
    sections = {key.split("/")[0] for key in watched.pop("monitored")}
    assert sections == {"ggn", "directions", "ntk", "cost"}
    plain.pop("monitored")
    assert differences(plain, watched) == []


def test_an_explicit_problem_leaves_the_run_as_it_is(tmp_path: Path) -> None:
    def problem(module: pl.LightningModule, batch: Any) -> Problem:
        return Problem(module, torch.nn.CrossEntropyLoss(), batch[0], batch[1])

    plain = run(tmp_path, Delicate(), [])
    watched = run(tmp_path, Delicate(), monitors(data="train", problem=problem))
    assert watched.pop("monitored")
    plain.pop("monitored")
    assert differences(plain, watched) == []


def test_monitored_columns_of_monte_carlo_leave_the_run_as_it_is(tmp_path: Path) -> None:
    sampled = [
        GGNSpectrumMonitor(k=2, every_n_steps=2, mc_samples=2, on_error="raise"),
        DirectionalDerivativesMonitor(k=2, every_n_steps=2, mc_samples=2, on_error="raise"),
    ]
    plain, watched = run(tmp_path, Delicate(), []), run(tmp_path, Delicate(), sampled)
    assert watched.pop("monitored")
    plain.pop("monitored")
    assert differences(plain, watched) == []


class Rude(Classifier):
    """Changes its batch in place and takes things out of it."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        batch[0].mul_(1.01)
        loss = super().training_step(batch, batch_idx)
        batch.pop()
        return loss


@pytest.mark.parametrize("data", ["batch", "train"])
def test_a_step_that_changes_its_batch_is_not_disturbed(tmp_path: Path, data: str) -> None:
    plain = run(tmp_path, Rude(), [])
    watched = run(tmp_path, Rude(), monitors(data=data))
    assert watched.pop("monitored")
    plain.pop("monitored")
    assert differences(plain, watched) == []


def multiply(teacher: list[Tensor], student: list[Tensor]) -> None:
    for old, new in zip(teacher, student, strict=True):
        old.mul_(0.9).add_(new, alpha=0.1)


def assign(teacher: list[Tensor], student: list[Tensor]) -> None:
    for old, new in zip(teacher, student, strict=True):
        old.data = 0.9 * old.data + 0.1 * new.data


def write_through_data(teacher: list[Tensor], student: list[Tensor]) -> None:
    for old, new in zip(teacher, student, strict=True):
        old.data *= 0.9
        old.data[:] += 0.1 * new.data


def interpolate(teacher: list[Tensor], student: list[Tensor]) -> None:
    torch._foreach_lerp_(teacher, student, 0.1)


def clip(teacher: list[Tensor], student: list[Tensor]) -> None:
    for new in student:
        torch.clamp(new, -0.2, 0.2, out=new)


class Teacher(Classifier):
    """The step moves the weights of a teacher towards those of the network."""

    def __init__(self, move: Callable[[list[Tensor], list[Tensor]], None]) -> None:
        super().__init__()
        self.teacher = copy.deepcopy(self.net).requires_grad_(False)
        self.move = move

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        with torch.no_grad():
            self.move(list(self.teacher.parameters()), list(self.net.parameters()))
            target = self.teacher(batch[0]).softmax(1)
        return F.cross_entropy(self(batch[0]), target)


@pytest.mark.parametrize("move", [multiply, assign, write_through_data, interpolate, clip])
def test_a_step_that_writes_to_parameters_does_it_once(tmp_path: Path, move: Any) -> None:
    plain = run(tmp_path, Teacher(move), [])
    watched = run(tmp_path, Teacher(move), monitors(data="train"))
    assert watched.pop("monitored")
    plain.pop("monitored")
    assert differences(plain, watched) == []


def test_a_failing_monitor_leaves_the_run_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        torch.rand(3), np.random.rand(), random.random()
        raise RuntimeError("injected")

    plain = run(tmp_path, Delicate(), [])
    monkeypatch.setattr("lightning_vivit.evaluation.build_exact.compute_kernels", broken)
    with pytest.warns(RuntimeWarning, match="injected"):
        watched = run(tmp_path, Delicate(), [GGNSpectrumMonitor(every_n_steps=2)])
    assert watched.pop("monitored") == set()
    plain.pop("monitored")
    assert differences(plain, watched) == []


def test_the_comparison_notices_a_careless_callback(tmp_path: Path) -> None:
    class Careless(pl.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, _: int) -> None:
            pl_module.net(batch[0])

    plain = run(tmp_path, Delicate(), [])
    assert differences(plain, run(tmp_path, Delicate(), [Careless()])) != []
