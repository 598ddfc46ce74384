"""What the five stories share: a small classifier, some digits, a quiet Trainer, figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as L
import matplotlib
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_vivit.demo import DigitsDataModule

FIGURES = Path(__file__).parents[2] / "docs" / "stories" / "figures"


class Classifier(L.LightningModule):
    """Any network, trained by SGD on cross-entropy."""

    def __init__(self, net: nn.Module, lr: float) -> None:
        super().__init__()
        self.net, self.lr = net, lr

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        inputs, labels = batch
        return F.cross_entropy(self.net(inputs), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        wanted = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return torch.optim.SGD(wanted, lr=self.lr)


class History(L.Callback):
    """The training loss of each step, and the monitors' values of the steps that have them."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.values: list[dict[str, float]] = []

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, *_: Any
    ) -> None:
        self.losses.append(float(outputs["loss"]))
        self.values.append({key: float(v) for key, v in trainer.callback_metrics.items()})

    def column(self, key: str) -> list[float]:
        return [values[key] for values in self.values]


def mlp(width: int = 32) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Tanh(), nn.Linear(width, 10))


def digits(count: int | None = None) -> tuple[Tensor, Tensor]:
    """The first training digits, [N, 1, 8, 8] and labels [N]."""
    data = DigitsDataModule()
    data.setup()
    images, labels = data.train_set.tensors
    return images[:count], labels[:count]


def loader(images: Tensor, labels: Tensor, batch_size: int | None = None) -> DataLoader[Any]:
    """Shuffled batches, or all samples in each batch."""
    size = len(labels) if batch_size is None else batch_size
    return DataLoader(TensorDataset(images, labels), size, shuffle=batch_size is not None)


def train(
    module: L.LightningModule, batches: DataLoader[Any], steps: int, *monitors: L.Callback
) -> History:
    """Fit on one core without files, and return what the run showed."""
    history = History()
    trainer = L.Trainer(
        max_steps=steps,
        max_epochs=-1,
        callbacks=[*monitors, history],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, batches)
    return history


def save(figure: Figure, name: str) -> None:
    """Write a figure for the documentation, the same bytes for the same numbers."""
    FIGURES.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": "stories"}):
        figure.savefig(FIGURES / f"{name}.svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
