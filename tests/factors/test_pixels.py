"""The kernel of patches from the kernel of pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lightning_vivit.factors.pixels as pixels
from lightning_vivit import Problem, evaluate
from lightning_vivit.factors import OuterProduct, Shift, contract
from lightning_vivit.factors.planning import Size, predicted_costs
from lightning_vivit.problem.tape.recorder import Call
from lightning_vivit.rules import Use, find_rule
from lightning_vivit.samples.axis import SampleAxis

CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
CASES = [
    (1, (9,), (4,), {}),
    (1, (9,), (3,), {"stride": 2, "padding": 1, "dilation": 2}),
    (2, (5, 6), (3, 3), {"padding": 1}),
    (2, (5, 6), (3, 2), {"padding": (2, 0), "stride": (1, 2)}),
    (2, (5, 6), (2, 4), {"padding": "same"}),
    (2, (4, 4), (5, 5), {"padding": 2}),  # some taps see only a corner
    (2, (2, 2), (3, 3), {"padding": 3, "stride": 3}),  # and some positions only zeros
    (2, (1, 1), (3, 3), {"padding": 1}),
    (2, (5, 4), (1, 1), {}),
    (3, (3, 4, 3), (2, 3, 2), {"padding": (0, 1, 1), "stride": (1, 2, 1)}),
]


def factors(
    case: tuple[int, Sequence[int], Sequence[int], dict[str, Any]],
    count: int,
    monkeypatch: pytest.MonkeyPatch,
) -> OuterProduct:
    """The weight's factor with the kernel of its bias, from pixels whether that pays or not."""
    rank, sizes, kernel, options = case
    monkeypatch.setattr(pixels, "_CHANNEL", 0.0)
    monkeypatch.setattr(pixels, "_SUMMAND", 0.0)
    maps = torch.randn(count, 3, *sizes).double()
    weight = torch.randn(5, 3, *kernel).double().requires_grad_()
    bias = torch.randn(5).double().requires_grad_()
    function = CONVOLUTIONS[rank]
    shape = function(maps, weight, bias, **options).shape[1:]
    columns = torch.randn(count, 2, 1, *shape).double()
    call = Call(function, (maps, weight, bias), options, (), "", True)
    use = Use(call, SampleAxis(0, count), columns, frozenset({id(weight), id(bias)}), {})
    rule = find_rule(function)
    assert rule is not None
    found = rule(use)
    assert found is not None
    (_, factor), (_, shift) = found
    assert isinstance(factor, OuterProduct) and isinstance(shift, Shift)
    whole = factor.with_bias(shift)
    assert whole is not None
    return whole


@pytest.mark.parametrize("mode", ["full", "trace", "diagonal"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_agrees_with_explicit_rows(
    case: tuple[int, Sequence[int], Sequence[int], dict[str, Any]],
    mode: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    first = factors(case, 4, monkeypatch)
    second = factors(case, 3, monkeypatch)
    assert first.pixels is not None and second.pixels is not None
    asked = []
    own = pixels.Pixels.kernel
    monkeypatch.setattr(
        pixels.Pixels, "kernel", lambda self, other: asked.append(1) or own(self, other)
    )
    for left, right in ((first, first), (first, second), (first, first.narrow(1, 3))):
        rows = [
            torch.cat([each.rows(), each.columns.sum(4).flatten(2)], dim=2)
            for each in (left, right)
        ]
        expected = torch.einsum("ncp,mdp->ncmd", *rows)
        if mode != "full":
            expected = expected.diagonal(dim1=1, dim2=3)
        if mode == "trace":
            expected = expected.sum(2)
        asked.clear()
        torch.testing.assert_close(contract(left, right, mode, "inputs_first"), expected)
        assert asked


def test_it_is_the_kernel_of_the_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    factor = factors(CASES[2], 4, monkeypatch)
    assert factor.pixels is not None
    seen = factor.inputs[:, 0]
    found = factor.pixels.narrow(1, 4).kernel(factor.pixels.narrow(0, 2))
    torch.testing.assert_close(found, torch.einsum("nbl,mbk->nlmk", seen[1:], seen[:2]))


def test_it_is_chosen_where_it_pays() -> None:
    torch.manual_seed(0)

    def of(maps: int, size: int, kernel: int, stride: int = 1, groups: int = 1) -> OuterProduct:
        weight = torch.zeros(8, maps // groups, kernel, kernel).double().requires_grad_()
        inputs, padding = torch.randn(2, maps, size, size).double(), kernel // 2
        options = {"padding": padding, "stride": stride, "groups": groups}
        columns = torch.randn(2, 1, 1, *F.conv2d(inputs, weight, **options).shape[1:]).double()
        call = Call(F.conv2d, (inputs, weight), options, (), "", True)
        rule = find_rule(F.conv2d)
        assert rule is not None
        found = rule(Use(call, SampleAxis(0, 2), columns, frozenset({id(weight)}), {}))
        assert found is not None and isinstance(found[0][1], OuterProduct)
        return found[0][1]

    assert of(128, 8, 3).pixels is not None and of(64, 6, 5).pixels is not None
    for other in (of(128, 8, 1), of(128, 8, 3, stride=2), of(3, 8, 3), of(128, 8, 3, groups=2)):
        assert other.pixels is None
    some = of(128, 8, 3)
    cheaper = predicted_costs(Size.of(some, some, "full"))["inputs_first"]
    bare = OuterProduct(some.columns, some.inputs, some.shape, taps=some.taps)
    assert cheaper < predicted_costs(Size.of(bare, bare, "full"))["inputs_first"]
    assert predicted_costs(Size.of(some, bare, "full")) == predicted_costs(
        Size.of(bare, some, "full")
    )
    torch.testing.assert_close(
        contract(some, bare, order="inputs_first"), contract(some, bare, order="rows")
    )


@pytest.mark.parametrize("channels_last", [False, True])
def test_networks_agree_in_both_ways(channels_last: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, 96, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(96 * 25, 4),
    ).eval()
    inputs = torch.randn(6, 3, 5, 5)
    if channels_last:
        inputs = inputs.to(memory_format=torch.channels_last)
    asked = []
    own = pixels.Pixels.kernel

    def counted(self: pixels.Pixels, other: pixels.Pixels) -> Tensor:
        asked.append(self.maps.dtype)
        return own(self, other)

    monkeypatch.setattr(pixels.Pixels, "kernel", counted)
    spectra = {}
    for dtype in (torch.float32, torch.float64):
        problem = Problem(model.to(dtype), F.cross_entropy, inputs.to(dtype), torch.arange(6) % 4)
        spectra[dtype] = evaluate(problem).eigenvalues()
    assert set(asked) == {torch.float32, torch.float64}
    monkeypatch.setattr(pixels, "_CHANNEL", 1e9)
    asked.clear()
    expected = evaluate(problem).eigenvalues()
    assert not asked
    torch.testing.assert_close(spectra[torch.float64], expected)
    scale = float(expected.max())
    torch.testing.assert_close(spectra[torch.float32].double(), expected, rtol=0, atol=1e-5 * scale)
