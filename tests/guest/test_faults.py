"""Faults at random points of a monitored step: training does not notice, one word is said."""

from __future__ import annotations

import gc
import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monitor_toys import RecordingLogger, trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_vivit import DirectionalDerivativesMonitor, GGNSpectrumMonitor, NTKMonitor
from lightning_vivit.callbacks.base import Monitor
from lightning_vivit.losses.cross_entropy import CrossEntropy

POINTS = 70  # of each model; three models


class Injected(Exception):
    """Not a RuntimeError: those have their own meaning to torch."""


class Base(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = self.build()

    def build(self) -> nn.Module:
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.01)


class Convolutional(Base):
    def build(self) -> nn.Module:
        return nn.Sequential(
            nn.Unflatten(1, (1, 2, 3)),
            nn.Conv2d(1, 4, 2),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(8, 3),
        )


class Recurrent(Base):
    def build(self) -> nn.Module:
        self.cells = nn.GRU(2, 4, batch_first=True)
        return nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.cells(x.reshape(-1, 3, 2))[0][:, -1])


MODELS = (Base, Convolutional, Recurrent)
KINDS = ("forward", "loss", "autograd", "eigensolver", "logger")


class Bomb:
    """Counts the calls of each kind inside monitored steps; raises at one of them."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.target: tuple[str, int] | None = None
        self.inside = False

    def wrap(self, kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if self.inside:
                self.calls[kind] += 1
                if self.target == (kind, self.calls[kind]):
                    raise Injected(f"at call {self.calls[kind]} of {kind}")
            return function(*args, **kwargs)

        return wrapped


@contextmanager
def armed(bomb: Bomb, log: RecordingLogger, model: type[Base]) -> Iterator[None]:
    hook = Monitor.on_train_batch_start

    def watched(self: Any, *args: Any) -> None:
        bomb.inside = True
        try:
            hook(self, *args)
        finally:
            bomb.inside = False

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Monitor, "on_train_batch_start", watched)
        patch.setattr(model, "forward", bomb.wrap("forward", model.forward))
        for name in ("gradient", "hessian_root", "basis"):
            method = getattr(CrossEntropy, name)
            patch.setattr(CrossEntropy, name, bomb.wrap("loss", method))
        patch.setattr(torch.autograd, "grad", bomb.wrap("autograd", torch.autograd.grad))
        for name in ("eigh", "eigvalsh"):
            patch.setattr(torch.linalg, name, bomb.wrap("eigensolver", getattr(torch.linalg, name)))
        patch.setattr(log, "log_metrics", bomb.wrap("logger", log.log_metrics))
        yield


def run(root: Path, model: type[Base], bomb: Bomb | None) -> dict[str, Any]:
    pl.seed_everything(5)
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(24, 6, generator=generator), torch.arange(24) % 3)
    module, log = model(), RecordingLogger()
    kinds = (GGNSpectrumMonitor, DirectionalDerivativesMonitor, NTKMonitor)
    monitors = [] if bomb is None else [kind(k=2, every_n_steps=2, data="batch") for kind in kinds]
    fit = trainer(root, *monitors, logger=log, max_steps=6, max_epochs=-1)
    loader = DataLoader(data, batch_size=4, shuffle=True)
    said = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if bomb is None:
            fit.fit(module, loader)
        else:
            with armed(bomb, log, model):
                fit.fit(module, loader)
        said = [str(w.message) for w in caught if "failed at step" in str(w.message)]
    return {
        "weights": [value.clone() for value in module.state_dict().values()],
        "gradients": [None if p.grad is None else p.grad.clone() for p in module.parameters()],
        "optimizer": str(fit.optimizers[0].state_dict()),
        "random": (torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()),
        "python": random.getstate(),
        "modes": [child.training for child in module.modules()],
        "hooks": [len(child._forward_hooks) for child in module.modules()],
        "global hooks": len(nn.modules.module._global_forward_hooks),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.is_grad_enabled()),
        "classes": [type(child) for child in module.modules()],
        "said": said,
    }


def living_tensors() -> int:
    gc.collect()
    return sum(1 for thing in gc.get_objects() if type(thing) in (Tensor, nn.Parameter))


def assert_equal(first: dict[str, Any], second: dict[str, Any]) -> None:
    for name in first:
        if name in ("weights", "gradients"):
            pairs = zip(first[name], second[name], strict=True)
            assert all(a is b is None or torch.equal(a, b) for a, b in pairs), name
        elif name != "said":
            assert first[name] == second[name], name


def check(root: Path, model: type[Base], points: int) -> None:
    plain = run(root, model, None)
    counter = Bomb()
    assert_equal(plain, run(root, model, counter))
    assert all(counter.calls[kind] >= 3 for kind in KINDS), counter.calls
    chance = random.Random(17)
    before = 0
    for index in range(points):
        kind = KINDS[index % len(KINDS)]
        bomb = Bomb()
        bomb.target = (kind, chance.randint(1, counter.calls[kind]))
        found = run(root, model, bomb)
        assert_equal(plain, found)
        assert len(found["said"]) == 1, (bomb.target, found["said"])
        assert f"at call {bomb.target[1]} of {kind}" in found["said"][0]
        del found
        now = living_tensors()
        if index == len(KINDS):
            before = now
        elif index > len(KINDS):
            assert now <= before, bomb.target


@pytest.mark.parametrize("model", MODELS)
def test_some_points(model: type[Base], tmp_path: Path) -> None:
    check(tmp_path, model, 10)


@pytest.mark.long
@pytest.mark.parametrize("model", MODELS)
def test_many_points(model: type[Base], tmp_path: Path) -> None:
    check(tmp_path, model, POINTS)
