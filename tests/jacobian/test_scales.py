"""Scales of batch normalisation that follow from a convolution's rows, and those that must not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_vivit import Problem, empirical_ntk
from lightning_vivit.jacobian.autograd import AutogradBackend
from lightning_vivit.jacobian.proof import locate_samples
from lightning_vivit.jacobian.scales import NormalisedConvolution
from lightning_vivit.rules.registry import find_rule, register_rule, unregister_rule


class Network(nn.Module):
    """A convolution and a batch normalisation with running statistics, and what may be between."""

    def __init__(self, rank: int = 2, between: str = "", affine: bool = True, **options: Any):
        super().__init__()
        torch.manual_seed(0)
        kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
        normal = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[rank - 1]
        self.conv = kind(2, 4, 3, **options)
        self.bn = normal(4, affine=affine)
        self.head = nn.Linear(4, 3)
        self.between = between
        with torch.no_grad():
            for value in self.bn.state_dict().values():
                if value.is_floating_point():
                    value.uniform_(0.5, 1.5)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.between == "hook" and y.requires_grad:
            y.register_hook(lambda gradient: 2 * gradient)
        z = self.bn(y * 1 if self.between == "product" else y).tanh()
        if self.between == "used twice":
            z = z + y
        if self.between == "normalised twice":
            z = z + self.bn(self.conv(x.flip(2)))
        return self.head(z.flatten(2).mean(2))


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each scale whose rows followed from a convolution's."""
    seen: list[int] = []
    plain = NormalisedConvolution.rows

    def rows(self: NormalisedConvolution, *args: Any) -> Any:
        seen.append(self.convolution)
        return plain(self, *args)

    monkeypatch.setattr(NormalisedConvolution, "rows", rows)
    return seen


def inputs(rank: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    sizes = {1: (40,), 2: (9, 8), 3: (8, 8, 9)}[rank]
    generator = torch.Generator().manual_seed(1)
    return torch.randn(5, 2, *sizes, generator=generator, dtype=torch.float64).to(dtype)


def expected(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Kernels [N, N, C, C] of all parameters from one backward pass for each sample and output."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    rows: dict[str, list[Tensor]] = {name: [] for name in parameters}
    for sample in x:
        for value in model(sample[None]).flatten():
            grads = torch.autograd.grad(value, list(parameters.values()), retain_graph=True)
            for name, grad in zip(parameters, grads, strict=True):
                rows[name].append(grad.flatten())
    n = len(x)
    jacobians = {name: torch.stack(parts) for name, parts in rows.items()}
    return {name: (j @ j.T).reshape(n, 3, n, 3).transpose(1, 2) for name, j in jacobians.items()}


def check(model: nn.Module, x: Tensor, tolerance: float = 1e-10) -> None:
    with Problem(model, None, x).recorded(preparation=AutogradBackend()) as live:
        structure = locate_samples(live.tape, live.outputs, live.sizes, live.model)[1]
    assert not structure.dense  # no rule was found to disagree with autograd
    found = empirical_ntk(model, x, param_groups="parameter")
    wanted = expected(model.double(), x.double())
    assert found.keys() == wanted.keys()
    for name, kernel in wanted.items():
        error = (found[name] - kernel).abs().max() / kernel.abs().max()
        assert error < tolerance, (name, float(error))


@pytest.mark.parametrize(
    "options",
    [{}, {"bias": False}, {"groups": 2}, {"stride": 2, "padding": 1}, {"dilation": 2}],
    ids=str,
)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_scales_follow(rank: int, options: dict[str, Any], taken: list[int]) -> None:
    check(Network(rank, **options).double(), inputs(rank))
    assert taken


@pytest.mark.parametrize("channels_last", [False, True])
def test_single_precision(channels_last: bool, taken: list[int]) -> None:
    model, x = Network(), inputs(dtype=torch.float32)
    if channels_last:  # rows with the taps before the inputs
        model.conv = nn.Conv2d(16, 4, 3)
        x = x.repeat(1, 8, 3, 3).contiguous(memory_format=torch.channels_last)
    check(model, x, 1e-4)
    assert taken


def break_scale(model: Network) -> None:
    model.bn.weight.data[1] = 0.0


def break_mean(model: Network) -> None:
    model.bn.running_mean[2] = 1e3


def freeze_filters(model: Network) -> None:
    model.conv.weight.requires_grad_(False)


def freeze_shift(model: Network) -> None:
    model.bn.bias.requires_grad_(False)


CHANGES = [break_scale, break_mean, freeze_filters, freeze_shift]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_scales_that_do_not_follow(change: Callable[[Network], None], taken: list[int]) -> None:
    model = Network().double()
    change(model)
    check(model, inputs())
    assert not taken


@pytest.mark.parametrize("between", ["used twice", "product", "hook"])
def test_something_between_the_two(between: str, taken: list[int]) -> None:
    check(Network(between=between).double(), inputs())
    assert not taken


def test_columns_in_place_of_rows(taken: list[int]) -> None:
    check(Network().double(), inputs()[:, :, :5, :4])
    assert not taken


def test_a_rule_of_ones_own(taken: list[int]) -> None:
    rule = find_rule(F.batch_norm)
    assert rule is not None
    unregister_rule(F.batch_norm)
    try:
        check(Network().double(), inputs())
    finally:
        register_rule(F.batch_norm)(rule)
    assert not taken


def test_without_a_scale(taken: list[int]) -> None:
    check(Network(affine=False).double(), inputs())
    assert not taken


def test_two_uses_of_the_pair(taken: list[int]) -> None:
    check(Network(between="normalised twice").double(), inputs())
    assert len(set(taken)) == 2


def test_some_of_the_parameters(taken: list[int]) -> None:
    model, x = Network().double(), inputs()
    wanted = expected(model, x)
    groups = {"scale": ["bn.weight"], "pair": ["conv.weight", "bn.weight", "bn.bias"]}
    found = {
        group: empirical_ntk(model, x, param_groups={group: names})[group]
        for group, names in groups.items()
    }
    assert taken
    for group, names in groups.items():
        torch.testing.assert_close(found[group], sum(wanted[name] for name in names))
