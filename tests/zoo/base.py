"""Registry of networks and the small pieces they are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

N, C = 5, 3


@dataclass(frozen=True)
class Entry:
    """A factory with its tags."""

    factory: Callable[[], tuple[nn.Module, Any]]
    tags: frozenset[str]


ZOO: dict[str, Entry] = {}


def network(*tags: str) -> Callable[[Callable[[], tuple[nn.Module, Any]]], Callable[[], Any]]:
    """Register a factory under its name."""

    def register(factory: Callable[[], tuple[nn.Module, Any]]) -> Callable[[], Any]:
        assert factory.__name__ not in ZOO
        ZOO[factory.__name__] = Entry(factory, frozenset(tags))
        return factory

    return register


def names_with(tag: str) -> list[str]:
    return [name for name, entry in ZOO.items() if tag in entry.tags]


@cache
def build(name: str) -> tuple[nn.Module, tuple[Any, ...]]:
    """The network and the tuple of its inputs, in float64 and off the default initial values."""
    torch.manual_seed(sum(map(ord, name)))
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        model, inputs = ZOO[name].factory()
    finally:
        torch.set_default_dtype(before)
    with torch.no_grad():
        for value in model.parameters():
            if value.is_floating_point() and "as_built" not in ZOO[name].tags:
                value.add_(0.1 * torch.randn_like(value))
    return model, inputs if isinstance(inputs, tuple) else (inputs,)


class Net(nn.Module):
    """A module whose forward is a function of itself and the inputs."""

    def __init__(self, run: Callable[..., Tensor], **children: Any) -> None:
        super().__init__()
        self._run = run
        for name, child in children.items():
            setattr(self, name, child)

    def forward(self, *inputs: Any) -> Tensor:
        return self._run(self, *inputs)


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(0.5 * torch.randn(shape))


def vectors(width: int = 4) -> Tensor:
    return torch.randn(N, width)


def sequences(length: int = 3, width: int = 4) -> Tensor:
    return torch.randn(N, length, width)


def maps(channels: int = 2, size: int = 6) -> Tensor:
    return torch.randn(N, channels, size, size)
