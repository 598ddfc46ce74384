"""Small modules and loaders for the tests of the monitors."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchmetrics.classification import MulticlassAccuracy


def blobs(samples: int = 48, features: int = 6, classes: int = 3, seed: int = 0) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(samples) % classes
    centres = 2 * torch.randn(classes, features, generator=generator)
    noise = torch.randn(samples, features, generator=generator)
    return TensorDataset(centres[labels] + noise, labels)


def loader(dataset: Dataset[Any] | None = None, **options: Any) -> DataLoader[Any]:
    options = {"batch_size": 8, **options}
    return DataLoader(blobs() if dataset is None else dataset, **options)


class Classifier(pl.LightningModule):
    """A plain MLP."""

    def __init__(self, features: int = 6, classes: int = 3, momentum: float = 0.0) -> None:
        super().__init__()
        self.momentum = momentum
        self.net = nn.Sequential(nn.Linear(features, 7), nn.Tanh(), nn.Linear(7, classes))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(inputs)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=self.momentum)


class Delicate(Classifier):
    """Everything that a careless monitor would disturb."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3)
        )
        self.net[1].eval()  # frozen by hand; it has to stay in eval mode
        self.extra = nn.BatchNorm1d(3)
        self.accuracy = MulticlassAccuracy(3)
        self.seen: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        outputs = self.extra(self(batch[0]))
        loss = F.cross_entropy(outputs, batch[1])
        self.accuracy(outputs, batch[1])
        self.seen.append(float(loss.detach()) + random.random() + float(np.random.rand()))
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        self.log("train_accuracy", self.accuracy, on_step=True, on_epoch=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)


class NoisyDataset(Dataset[Any]):
    """Reading a sample moves a generator of the data set and the global ones."""

    def __init__(self, samples: int = 48) -> None:
        self.inputs, self.labels = blobs(samples).tensors
        self.generator = np.random.default_rng(0)
        self.reads = 0

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.reads += 1
        noise = self.generator.normal() + torch.rand(()) + np.random.rand() + random.random()
        return self.inputs[index] + 0.01 * float(noise), self.labels[index]


class RecordingLogger(Logger):
    """An unknown kind of logger: it keeps what it got."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, dict[str, float]]] = []

    @property
    def name(self) -> str:
        return "recording"

    @property
    def version(self) -> int:
        return 0

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        assert step is not None
        self.rows.append((step, dict(metrics)))

    def values(self, key: str) -> dict[int, float]:
        return {step: row[key] for step, row in self.rows if key in row}

    def seen(self) -> set[str]:
        return {key for _, row in self.rows for key in row}


def trainer(root: Path, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1000,
        **options,
    }
    return pl.Trainer(default_root_dir=root, callbacks=list(callbacks), **settings)


def tensorboard(root: Path) -> TensorBoardLogger:
    return TensorBoardLogger(root, name="run", version="0")


def csv(root: Path) -> CSVLogger:
    return CSVLogger(root, name="csv", version="0")


def events(root: Path) -> EventAccumulator:
    found = EventAccumulator(str(root / "run" / "0"), size_guidance={"scalars": 0, "histograms": 0})
    found.Reload()
    return found
