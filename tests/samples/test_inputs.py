"""Kernels of models whose inputs are dataclasses, objects, graphs and packed sequences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence, unpack_sequence
from torch.utils.data import DataLoader

from lightning_vivit import ProblemError, empirical_ntk, ntk_between
from lightning_vivit.samples.batch import checksum
from samples.structures import FEATURES, STRUCTURES, Structure, inputs_of, labels_of

PACKED = Structure(
    lambda s: pack_sequence([inputs_of([n]).repeat(1 + n % 3, 1) for n in s], False),
    lambda b: (torch.stack([each.mean(0) for each in unpack_sequence(b)]), labels_of([])),
)
NAMES = ("dataclass with names", "frozen dataclass", "object with to", "slots with to", "graphs")
KINDS = {"packed": PACKED, **{name: STRUCTURES[name] for name in NAMES}}
ALL = list(range(9))


class Model(nn.Module):
    """Takes the whole structure."""

    def __init__(self, structure: Structure) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.structure = structure
        self.net = nn.Sequential(nn.Linear(FEATURES, 4), nn.Tanh(), nn.Linear(4, 3))

    def forward(self, batch: Any) -> Tensor:
        return self.net(self.structure.read(batch)[0])


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest) -> Model:
    return Model(KINDS[request.param])


def expected(model: Model) -> Tensor:
    """J J^T summed over outputs, by explicit Jacobians."""
    outputs, rows = model.net(inputs_of(ALL)), []
    for output in outputs.flatten():
        grads = torch.autograd.grad(output, list(model.net.parameters()), retain_graph=True)
        rows.append(torch.cat([grad.flatten() for grad in grads]))
    jacobian = torch.stack(rows).reshape(len(ALL), 3, -1).double()
    return torch.einsum("nci,mci->nm", jacobian, jacobian).float()


def test_kernel_of_two_batches(model: Model) -> None:
    first, second = model.structure.make(ALL[:5]), model.structure.make(ALL[5:])
    marks = checksum(first), checksum(second)
    found = empirical_ntk(model, first, second, "trace")
    torch.testing.assert_close(found, expected(model)[:5, 5:], rtol=1e-5, atol=1e-5)
    assert (checksum(first), checksum(second)) == marks


@pytest.mark.parametrize("size", [2, 4, 9])
def test_kernel_of_a_data_set(model: Model, size: int) -> None:
    batches = DataLoader(ALL, batch_size=size, collate_fn=model.structure.make)
    found = ntk_between(
        model, batches, mode="trace", select=lambda batch: batch, block_size=4, progress=False
    )
    torch.testing.assert_close(found, expected(model), rtol=1e-5, atol=1e-5)


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, 2)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return self.layer(x * scale)


def test_what_is_not_per_sample_has_to_be_the_same() -> None:
    model, x = Scaled(), inputs_of(ALL)
    one, two = torch.tensor([1.0]), torch.tensor([2.0])
    whole = empirical_ntk(model, {"x": x, "scale": two}, mode="trace")
    found = empirical_ntk(
        model, {"x": x[:4], "scale": two}, {"x": x[4:], "scale": two.clone()}, "trace"
    )
    torch.testing.assert_close(found, whole[:4, 4:])
    with pytest.raises(ProblemError, match=r"x1 has tensors of shape \[4, 5\], \[1\], x2"):
        empirical_ntk(model, {"x": x[:4], "scale": one}, {"x": x[4:], "scale": two}, "trace")
