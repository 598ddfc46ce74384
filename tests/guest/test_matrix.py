"""Twenty steps with and without monitors, for every way to train: the run is the same.

A row is a way to train. Weights, optimizer states, random states and the user's own logs are
compared bit by bit; the values of the first monitored step with those of the plain float32 run.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import BaseFinetuning
from lightning.pytorch.utilities import CombinedLoader
from monitor_toys import RecordingLogger, trainer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from lightning_vivit import DirectionalDerivativesMonitor, GGNSpectrumMonitor, NTKMonitor, Problem

OWN = ("ggn/", "directions/", "ntk/", "cost/")
STEPS = 20


class Net(pl.LightningModule):
    """A small CNN with dropout and batch normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3, stride=2)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(4 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        return self.head(self.drop(self.middle(x)).flatten(1))

    def middle(self, x: Tensor) -> Tensor:
        return F.max_pool2d(torch.relu(self.second(x)), 2, stride=1, padding=1)[..., :2, :2]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log(f"val_{dataloader_idx}", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


class Checkpointed(Net):
    def middle(self, x: Tensor) -> Tensor:
        return checkpoint(super().middle, x, use_reentrant=False)


class ChannelsLast(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(memory_format=torch.channels_last))


class FromDict(Net):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step((batch["image"], batch["label"]), batch_idx)


class FromLoaders(Net):
    """A batch of two loaders; only one of them makes the loss."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.log("other", batch["other"][0].mean())
        return super().training_step(batch["main"], batch_idx)


class Lbfgs(Net):
    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3, history_size=3)


class AdamW(Net):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 5)]


class Manual(Net):
    """Two optimizers that take turns."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            loss = F.cross_entropy(self(x), y)
            self.manual_backward(loss)
            optimizer.step()
        self.log("loss", loss)

    def configure_optimizers(self) -> Any:
        body = [*self.first.parameters(), *self.second.parameters()]
        return [
            torch.optim.SGD(body, lr=0.05),
            torch.optim.Adam(self.head.parameters(), lr=0.01),
        ]


class Compiled(Net):
    """One of its submodules is compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.second = torch.compile(self.second, backend="aot_eager")


class Growing(Net):
    """A further layer at step 8, with its own optimizer group."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.global_step == 8:
            self.late = nn.Linear(3, 3)
            nn.init.eye_(self.late.weight)
            self.optimizers().add_param_group({"params": self.late.parameters()})

    def forward(self, x: Tensor) -> Tensor:
        outputs = super().forward(x)
        return self.late(outputs) if hasattr(self, "late") else outputs


class Unfreeze(BaseFinetuning):
    """Only the head is trained in the first epoch."""

    def freeze_before_training(self, pl_module: pl.LightningModule) -> None:
        self.freeze([pl_module.first, pl_module.second], train_bn=True)

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
        if epoch == 1:
            self.unfreeze_and_add_param_group([pl_module.first, pl_module.second], optimizer)


def images(count: int = 64, dtype: torch.dtype = torch.float32) -> TensorDataset:
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(count) % 3
    shapes = torch.randn(3, 1, 9, 9, generator=generator)
    noise = torch.randn(count, 1, 9, 9, generator=generator)
    return TensorDataset((shapes[labels] + noise).to(dtype), labels)


def loader(batch_size: int = 8) -> DataLoader[Any]:
    return DataLoader(images(), batch_size=batch_size, shuffle=True)


def dicts() -> DataLoader[Any]:
    rows = [{"image": x, "label": y} for x, y in images()]
    return DataLoader(rows, batch_size=8, shuffle=True)


def two_loaders() -> CombinedLoader:
    other = DataLoader(TensorDataset(torch.randn(40, 2)), batch_size=5)
    return CombinedLoader({"main": loader(), "other": other}, "max_size_cycle")


def explicit(module: Any, batch: Any) -> Problem:
    return Problem(module, nn.CrossEntropyLoss(), batch[0], batch[1])


@dataclass
class Row:
    """One way to train."""

    kind: type[Net] = Net
    options: dict[str, Any] = field(default_factory=dict)
    train: Callable[[], Any] = loader
    callbacks: Callable[[], list[pl.Callback]] = list
    monitor: dict[str, Any] = field(default_factory=dict)
    wrap: Callable[[Any], Any] = lambda module: module
    validation: int = 1
    tolerance: float = 1e-4
    steps: int = STEPS


ROWS = {
    "plain": Row(),
    "bf16-mixed": Row(options={"precision": "bf16-mixed"}),
    "16-mixed": Row(options={"precision": "16-mixed"}),  # on a CPU Lightning makes it bf16-mixed
    "64-true": Row(options={"precision": "64-true"}),
    "bf16-true": Row(options={"precision": "bf16-true"}, tolerance=0.05),
    "compiled submodule": Row(kind=Compiled),
    "compiled module": Row(wrap=lambda m: torch.compile(m, backend="aot_eager")),
    "activation checkpointing": Row(kind=Checkpointed),
    "channels_last": Row(kind=ChannelsLast),
    "accumulated": Row(options={"accumulate_grad_batches": 2}),
    "clipped": Row(options={"gradient_clip_val": 0.1}),
    "LBFGS": Row(kind=Lbfgs),
    "AdamW and scheduler": Row(kind=AdamW),
    "manual, two optimizers": Row(kind=Manual, monitor={"problem": explicit}, steps=10),
    "explicit problem": Row(monitor={"problem": explicit}),
    "dict batch": Row(kind=FromDict, train=dicts),
    "CombinedLoader": Row(kind=FromLoaders, train=two_loaders),
    "validation loaders": Row(validation=2, options={"val_check_interval": 4}),
    "overfit_batches": Row(options={"overfit_batches": 2}),
    "limit_train_batches": Row(options={"limit_train_batches": 3}),
    "fast_dev_run": Row(options={"fast_dev_run": 5}, steps=5),
    "no sanity checking": Row(options={"num_sanity_val_steps": 0}),
    "fine-tuning": Row(callbacks=lambda: [Unfreeze()]),
    "parameters added": Row(kind=Growing),
    "anomaly detection": Row(options={"detect_anomaly": True}),
    "no inference mode": Row(options={"inference_mode": False}),
    "deterministic": Row(options={"deterministic": True}),
    "probe of the training data": Row(monitor={"data": "train"}),
    "probe of the validation data": Row(monitor={"data": "val"}),
    "evaluated in float64": Row(monitor={"replay_dtype": "float64"}),
    "BackPACK not used, float64 Gram": Row(monitor={"dtype": "float64", "backend": "autograd"}),
}


def monitors(**options: Any) -> list[pl.Callback]:
    options = {"k": 3, "every_n_steps": 4, "on_error": "raise", "data": "batch", **options}
    kinds = (GGNSpectrumMonitor, DirectionalDerivativesMonitor, NTKMonitor)
    return [kind(**options) for kind in kinds]


def run(
    root: Path, row: Row, watched: bool
) -> tuple[dict[str, Any], RecordingLogger, dict[str, Any]]:
    torch._dynamo.reset()
    pl.seed_everything(11)
    module, log = row.kind(), RecordingLogger()
    callbacks = [*row.callbacks(), *(monitors(**row.monitor) if watched else [])]
    options = {"max_epochs": -1, "max_steps": STEPS, "log_every_n_steps": 1, **row.options}
    fit = trainer(root, *callbacks, logger=log, **options)
    fit.fit(row.wrap(module), row.train(), [loader() for _ in range(row.validation)])
    metrics = dict(fit.callback_metrics)
    fit.validate(module, loader(), verbose=False)
    rows = [
        (step, {key: value for key, value in found.items() if not key.startswith(OWN)})
        for step, found in log.rows
    ]
    left = {
        "weights": copy.deepcopy(module.state_dict()),
        "gradients": [p.grad for p in module.parameters()],
        "optimizers": [optimizer.state_dict() for optimizer in fit.optimizers],
        "rows": [entry for entry in rows if entry[1]],
        "random": [torch.get_rng_state(), np.random.get_state()[1], random.getstate()],
        "modes": [child.training for child in module.modules()],
        "hooks": [
            len(hooks)
            for child in module.modules()
            for name, hooks in vars(child).items()
            if name.endswith("_hooks")
        ],
        "attributes": [sorted(vars(child)) for child in module.modules()],
        "default": torch.get_default_dtype(),
        "steps": fit.global_step,
    }
    return left, log, metrics


def assert_same(first: Any, second: Any, where: str = "") -> None:
    if isinstance(first, Tensor):
        assert first.dtype == second.dtype and torch.equal(first, second), where
    elif isinstance(first, np.ndarray):
        assert np.array_equal(first, second), where
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key in first:
            assert_same(first[key], second[key], f"{where}.{key}")
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second), where
        for index, pair in enumerate(zip(first, second, strict=True)):
            assert_same(*pair, f"{where}[{index}]")
    else:
        assert first == second, where


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ROWS)
def test_the_run_is_the_same_and_the_values_are_right(name: str, tmp_path: Path) -> None:
    row = ROWS[name]
    plain, _, _ = run(tmp_path, row, watched=False)
    watched, log, metrics = run(tmp_path, row, watched=True)
    assert_same(plain, watched)
    if name == "fast_dev_run":  # Lightning takes the loggers away
        assert {"ggn/trace", "ntk/trace"} <= set(metrics)
        return
    found = log.values("ggn/eigenvalue_1")
    assert sorted(found) == list(range(0, row.steps, 4)), name
    assert set(log.values("directions/gradient_share")) == set(found)
    if name in COMPARABLE:
        _, reference, _ = run(tmp_path, ROWS["plain"], watched=True)
        for key in KEYS:
            expected = reference.values(key)[0]
            assert log.values(key)[0] == pytest.approx(expected, rel=row.tolerance), key


KEYS = ("ggn/eigenvalue_1", "ggn/eigenvalue_3", "ggn/trace", "directions/lambda_mean_1")
# rows whose first batch and first parameters are those of the plain run
COMPARABLE = (
    "bf16-mixed",
    "16-mixed",
    "64-true",
    "bf16-true",
    "compiled submodule",
    "compiled module",
    "activation checkpointing",
    "channels_last",
    "accumulated",
    "clipped",
    "AdamW and scheduler",
    "dict batch",
    "explicit problem",
    "evaluated in float64",
    "parameters added",
)
