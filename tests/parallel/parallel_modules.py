"""Modules, loaders and problems that the ranks and the one process to compare with share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_vivit import Problem

CLASSES = 3


def data(samples: int = 48) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(samples) % CLASSES
    images = torch.randn(samples, 2, 6, 6, generator=generator)
    images += torch.randn(CLASSES, 2, 6, 6, generator=generator)[labels]
    return images, labels


class Net(pl.LightningModule):
    """A CNN with running statistics, dropout and an unused parameter if wanted."""

    def __init__(self, unused: bool = False) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 5, 3),
            nn.Tanh(),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(80, 8),
            nn.Sigmoid(),
            nn.Linear(8, CLASSES),
        )
        if unused:
            self.spare = nn.Linear(2, 2)

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(outputs, labels)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(self.net(batch[0]), batch[1])
        self.log("train_loss", loss, sync_dist=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(self.net(batch[0]), batch[1]), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.5)

    def train_dataloader(self) -> Any:
        return DataLoader(TensorDataset(*data()), batch_size=4, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(TensorDataset(*data(9)), batch_size=4)


class Weighted(Net):
    """The mean divides by the sum of the weights of the labels that count."""

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        weight = torch.tensor([0.5, 1.0, 3.0])
        return F.cross_entropy(outputs, labels, weight=weight, ignore_index=1)


class Divided(Net):
    """The user divides, by something that only the batch tells."""

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        each = F.cross_entropy(outputs, labels, reduction="none")
        mask = (labels != 2).float()
        return (each * mask).sum() / mask.sum()


class Uneven(IterableDataset[Any]):
    """Rank 0 gets batches of 5, the others batches of 2 to 4, from a stream."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def __iter__(self) -> Iterator[Any]:
        images, labels = data()
        size = 5 if self.rank == 0 else 1 + min(self.rank, 3)
        for start in range(4):
            chosen = slice(start * 10 + self.rank, start * 10 + self.rank + size)
            yield images[chosen], labels[chosen]


class Special(Uneven):
    """Rank 0's samples are marked."""

    def __iter__(self) -> Iterator[Any]:
        for images, labels in super().__iter__():
            marked = images.clone()
            marked[:, 0, 0, 0] = 9.0 if self.rank == 0 else 0.0
            yield marked, labels


class Streaming(Weighted):
    def train_dataloader(self) -> Any:
        return DataLoader(Uneven(self.trainer.global_rank), batch_size=None)


class Experts(Streaming):
    """A branch that only rank 0's samples take, so the others do not use its parameters."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.first, self.expert = nn.Linear(72, 6), nn.Linear(6, 6)
        self.net = nn.Sequential(nn.Tanh(), nn.Linear(6, CLASSES))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        hidden = self.first(batch[0].flatten(1))
        special = batch[0][:, 0, 0, 0] > 5.0
        if bool(special.any()):
            hidden = hidden + self.expert(hidden) * special.unsqueeze(1)
        return self.loss(self.net(hidden), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass

    def train_dataloader(self) -> Any:
        return DataLoader(Special(self.trainer.global_rank), batch_size=None)


class Words(pl.LightningModule):
    """An embedding, attention and one output for each token; tied weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.embed = nn.Embedding(7, 8)
        self.attend = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
        self.head = nn.Linear(8, 7, bias=False)
        self.head.weight = self.embed.weight

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        outputs = self.head(self.attend(self.embed(batch[0])))
        return F.cross_entropy(outputs.flatten(0, 1), batch[0].roll(-1, 1).flatten())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self) -> Any:
        tokens = torch.randint(0, 7, (32, 4), generator=torch.Generator().manual_seed(3))
        return DataLoader(TensorDataset(tokens), batch_size=3)


def explicit_problem(module: Any, batch: Any) -> Problem:
    return Problem(module.net, nn.CrossEntropyLoss(), batch[0], batch[1])


def squared(outputs: Tensor, labels: Tensor) -> Tensor:
    return (outputs - F.one_hot(labels, CLASSES)).pow(4).sum(1).mean()


def custom_problem(module: Any, batch: Any) -> Problem:
    return Problem(module.net, squared, batch[0], batch[1])
