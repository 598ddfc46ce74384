"""What a training step of the tests is, and the registry of them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

N, C = 6, 3


class Step(nn.Module):
    """A module with a step; networks are built in `build`."""

    #: Whether evaluation mode gives the same function whatever was drawn.
    plain = False
    #: Whether it runs under autocast.
    autocast = False

    def __init__(self) -> None:
        super().__init__()
        self.build()

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, C))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def batch(self) -> tuple[Tensor, ...]:
        return torch.randn(N, 5), torch.randint(0, C, (N,))

    def step(self, batch: Any) -> Tensor:
        x, y = batch
        return F.cross_entropy(self(x), y)


STEPS: dict[str, type[Step]] = {}


def step(kind: type[Step]) -> type[Step]:
    STEPS[kind.__name__] = kind
    return kind


class Maps(Step):
    def batch(self) -> tuple[Tensor, ...]:
        return torch.randn(N, 2, 6, 6), torch.randint(0, C, (N,))


class Sequences(Step):
    def batch(self) -> tuple[Tensor, ...]:
        return torch.randn(N, 5, 4), torch.randint(0, C, (N,))
