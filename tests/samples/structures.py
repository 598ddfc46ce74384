"""Batches of every structure that Lightning moves, made of the same samples.

The n-th sample has inputs [n, n + 0.5, ...], label n % 3 and the name "sample n"; a batch takes
some of them. Each class says how it is made, and how a step reads inputs and labels out of it.
"""

from __future__ import annotations

from collections import OrderedDict, UserDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence, unpack_sequence

FEATURES = 5


def inputs_of(samples: Sequence[int]) -> Tensor:
    grid = torch.tensor(list(samples), dtype=torch.float32)[:, None]
    return torch.cos(grid * torch.arange(1, FEATURES + 1))


def labels_of(samples: Sequence[int]) -> Tensor:
    return torch.tensor([sample % 3 for sample in samples])


class Named(NamedTuple):
    x: Tensor
    y: Tensor


@dataclass
class Plain:
    x: Tensor
    y: Tensor
    names: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Frozen:
    x: Tensor
    y: Tensor
    doubled: Tensor = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "doubled", 2 * self.x)

    def to(self, device: Any) -> Frozen:  # Lightning itself moves no frozen dataclass
        return Frozen(self.x.to(device), self.y.to(device))


@dataclass(frozen=True, slots=True)
class FrozenSlots:
    x: Tensor
    y: Tensor

    def to(self, device: Any) -> FrozenSlots:
        return FrozenSlots(self.x.to(device), self.y.to(device))


class Encoding(UserDict[str, Any]):
    """A mapping with state of its own and a method `to`, like transformers' BatchEncoding."""

    def __init__(self, data: dict[str, Any], tokenizer: str) -> None:
        super().__init__(data)
        self.tokenizer = tokenizer

    def to(self, device: Any) -> Encoding:
        self.data = {name: value.to(device) for name, value in self.data.items()}
        return self


class Movable:
    """An object with `.to` that changes itself."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.held = {"x": x}
        self.y = y

    def to(self, device: Any) -> Movable:
        self.held["x"], self.y = self.held["x"].to(device), self.y.to(device)
        return self


class Slotted:
    """An object with `.to` and without `__dict__`."""

    __slots__ = ("x", "y")

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def to(self, device: Any) -> Slotted:
        return Slotted(self.x.to(device), self.y.to(device))


class Graphs:
    """Graphs with different numbers of nodes, in the way of torch_geometric's Batch."""

    def __init__(self, graphs: list[Tensor], y: Tensor) -> None:
        self.x = torch.cat(graphs)
        self.ptr = torch.tensor([0, *(len(graph) for graph in graphs)]).cumsum(0)
        self.y = y

    @property
    def num_graphs(self) -> int:
        return len(self.y)

    @property
    def num_nodes(self) -> int:
        return len(self.x)

    def to(self, device: Any) -> Graphs:
        self.x, self.ptr, self.y = (each.to(device) for each in (self.x, self.ptr, self.y))
        return self

    def to_data_list(self) -> list[Graphs]:
        bounds = self.ptr.tolist()
        pairs = zip(bounds, bounds[1:], self.y, strict=False)
        return [Graphs([self.x[start:stop]], y[None]) for start, stop, y in pairs]

    @classmethod
    def from_data_list(cls, graphs: list[Graphs]) -> Graphs:
        return cls([graph.x for graph in graphs], torch.cat([graph.y for graph in graphs]))


@dataclass(frozen=True)
class Structure:
    """How a batch is made of samples, and how its inputs and labels are read."""

    make: Callable[[list[int]], Any]
    read: Callable[[Any], tuple[Tensor, Tensor]]


def _names(samples: list[int]) -> list[str]:
    return [f"sample {sample}" for sample in samples]


def _nodes(samples: list[int]) -> list[Tensor]:
    """One to three nodes for each sample, whose mean are its inputs."""
    signs = ([0.0], [-1.0, 1.0], [-1.0, 0.0, 1.0])
    rows = zip(samples, inputs_of(samples), strict=True)
    return [row + torch.tensor(signs[sample % 3])[:, None] for sample, row in rows]


def _mean_of_nodes(batch: Graphs) -> tuple[Tensor, Tensor]:
    lengths = batch.ptr.diff()
    graph = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    sums = torch.zeros(len(lengths), FEATURES, dtype=batch.x.dtype).index_add(0, graph, batch.x)
    return sums / lengths[:, None], batch.y


def _mean_of_ragged(batch: tuple[list[Tensor], list[int]]) -> tuple[Tensor, Tensor]:
    return torch.stack([each.mean(0) for each in batch[0]]), torch.tensor(batch[1])


def _mean_of_packed(batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    return torch.stack([each.mean(0) for each in unpack_sequence(batch["x"])]), batch["y"]


def _checked(batch: Any, names: Sequence[str]) -> tuple[Tensor, Tensor]:
    assert len(names) == len(batch.x)
    return batch.x, batch.y


STRUCTURES = {
    "list": Structure(lambda s: [inputs_of(s), labels_of(s)], lambda b: (b[0], b[1])),
    "nested tuple": Structure(
        lambda s: ((inputs_of(s), None), {"y": [labels_of(s)]}), lambda b: (b[0][0], b[1]["y"][0])
    ),
    "deque": Structure(lambda s: deque([inputs_of(s), labels_of(s)]), lambda b: (b[0], b[1])),
    "named tuple": Structure(lambda s: Named(inputs_of(s), labels_of(s)), lambda b: (b.x, b.y)),
    "dict with sizes of one": Structure(
        lambda s: {
            "x": inputs_of(s),
            "scale": torch.tensor([2.0]),
            "mask": torch.ones(1, FEATURES),
            "y": labels_of(s),
        },
        lambda b: (b["x"] * b["mask"] * b["scale"] / 2, b["y"]),
    ),
    "ordered dict": Structure(
        lambda s: OrderedDict(x=inputs_of(s), y=labels_of(s)), lambda b: (b["x"], b["y"])
    ),
    "mapping with state": Structure(
        lambda s: Encoding({"x": inputs_of(s), "y": labels_of(s)}, "words"),
        lambda b: (b["x"] if b.tokenizer == "words" else None, b["y"]),
    ),
    "read-only mapping": Structure(
        lambda s: MappingProxyType({"x": inputs_of(s), "y": labels_of(s)}),
        lambda b: (b["x"], b["y"]),
    ),
    "dataclass with names": Structure(
        lambda s: Plain(inputs_of(s), labels_of(s), _names(s)), lambda b: _checked(b, b.names)
    ),
    "frozen dataclass": Structure(
        lambda s: Frozen(inputs_of(s), labels_of(s)), lambda b: (b.doubled / 2, b.y)
    ),
    "slots dataclass": Structure(
        lambda s: FrozenSlots(inputs_of(s), labels_of(s)), lambda b: (b.x, b.y)
    ),
    "object with to": Structure(
        lambda s: Movable(inputs_of(s), labels_of(s)), lambda b: (b.held["x"], b.y)
    ),
    "slots with to": Structure(lambda s: Slotted(inputs_of(s), labels_of(s)), lambda b: (b.x, b.y)),
    "names and lengths": Structure(
        lambda s: {
            "x": inputs_of(s),
            "y": labels_of(s),
            "names": tuple(_names(s)),
            "more": [{"id": sample} for sample in s],
            "classes": ["a", "b"],
        },
        lambda b: (
            b["x"] if len(b["names"]) == len(b["more"]) == len(b["x"]) else b["classes"],
            b["y"],
        ),
    ),
    "numpy beside": Structure(
        lambda s: (inputs_of(s), labels_of(s).numpy(), np.array(_names(s))),
        lambda b: (b[0] if len(b[2]) == len(b[0]) else None, torch.from_numpy(b[1])),
    ),
    "packed sequence": Structure(
        lambda s: {"x": pack_sequence(_nodes(s), enforce_sorted=False), "y": labels_of(s)},
        _mean_of_packed,
    ),
    "graphs": Structure(lambda s: Graphs(_nodes(s), labels_of(s)), _mean_of_nodes),
    "list of samples": Structure(
        lambda s: list(zip(inputs_of(s), labels_of(s), strict=True)),
        lambda b: (torch.stack([x for x, _ in b]), torch.stack([y for _, y in b])),
    ),
    "list of dicts": Structure(
        lambda s: [
            {"x": x, "y": y, "id": i}
            for x, y, i in zip(inputs_of(s), labels_of(s).tolist(), s, strict=True)
        ],
        lambda b: (torch.stack([e["x"] for e in b]), torch.tensor([e["y"] for e in b])),
    ),
    "lists of fields": Structure(
        lambda s: (tuple(inputs_of(s)), tuple(labels_of(s))),
        lambda b: (torch.stack(b[0]), torch.stack(b[1])),
    ),
    "ragged list": Structure(lambda s: (_nodes(s), labels_of(s).tolist()), _mean_of_ragged),
}
