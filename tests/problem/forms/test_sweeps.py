"""Operations that a recorded pass runs in other forms: same values and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lightning_vivit.problem.forms.sweeps as substitutes
from lightning_vivit import Problem, empirical_ntk, evaluate
from lightning_vivit.problem.forms.sweeps import Substitutes


def gradients(value: Tensor, *tensors: Tensor) -> list[Tensor]:
    weights = torch.linspace(-1, 1, value.numel()).reshape(value.shape)
    return list(torch.autograd.grad((weights * value).sum(), tensors, retain_graph=True))


def leaf(*shape: int) -> Tensor:
    return torch.randn(shape, requires_grad=True)


def differs(expected: Tensor, found: Tensor) -> float:
    return float((expected - found).detach().abs().max() / expected.abs().max())


@pytest.mark.parametrize("large", [1, 1 << 16])  # of which the maps are not in another format
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "padding": 1},
        {"padding": "same", "dilation": 2},
        {"groups": 2, "padding": (1, 0)},
    ],
    ids=str,
)
def test_convolution(options: dict[str, Any], large: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(substitutes, "_LARGE_WEIGHT", large)
    torch.manual_seed(0)
    maps, bias = leaf(3, 4, 9, 8), leaf(6)
    weight = leaf(6, 4 // options.get("groups", 1), 3, 3)
    plain = F.conv2d(maps, weight, bias, **options)
    runs = Substitutes()
    found = runs.run(F.conv2d, (maps, weight, bias), options)
    assert runs.changed_format == (large > 1)
    assert found.is_contiguous(memory_format=torch.channels_last) == (large > 1)
    assert differs(plain, found) < 1e-5
    for expected, grad in zip(
        gradients(plain, maps, weight, bias), gradients(found, maps, weight, bias), strict=True
    ):
        assert differs(expected, grad) < 1e-5


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 3), (5, 4, 3, 2)], ids=str)
def test_batch_normalisation(shape: tuple[int, ...], affine: bool) -> None:
    torch.manual_seed(0)
    inputs, mean, variance = leaf(*shape), torch.randn(4), torch.rand(4) + 0.1
    parameters = [leaf(4), leaf(4)] if affine else []
    args = (inputs, mean, variance, *(parameters or [None, None]), False, 0.1, 1e-3)
    plain, found = F.batch_norm(*args), Substitutes().run(F.batch_norm, args, {})
    assert found.grad_fn.name() != plain.grad_fn.name()
    assert differs(plain, found) < 1e-5
    for expected, grad in zip(
        gradients(plain, inputs, *parameters), gradients(found, inputs, *parameters), strict=True
    ):
        assert differs(expected, grad) < 1e-5


def test_batch_statistics_stay_what_they_are() -> None:
    inputs, mean, variance = leaf(5, 4), torch.zeros(4), torch.ones(4)
    for options in ({"training": True}, {"training": True, "momentum": 0.5}):
        found = Substitutes().run(F.batch_norm, (inputs, mean, variance), options)
        assert "BatchNorm" in found.grad_fn.name()
    assert mean.abs().max() > 0  # the running mean was updated
    found = Substitutes().run(F.batch_norm, (inputs, None, None), {"training": True})
    assert torch.equal(found, F.batch_norm(inputs, None, None, training=True))


class Convolutions(nn.Module):
    """Everything that is run in another form, in float32; `view` needs the usual format."""

    def __init__(self, view: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.pad, self.pool = nn.ZeroPad2d((0, 1, 0, 1)), nn.MaxPool2d(3, 2)
        self.conv2, self.linear = nn.Conv2d(8, 8, 3, stride=2), nn.Linear(32, 3)
        self.bn.running_mean.normal_()
        self.bn.running_var.uniform_(0.5, 2.0)
        self.view, self.runs = view, 0
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        x = self.pool(self.pad(F.relu(self.bn(self.conv1(x)))))
        x = torch.tanh(self.conv2(x))
        return self.linear(x.view(len(x), -1) if self.view else x.flatten(1))


INPUTS = torch.linspace(-1, 1, 6 * 3 * 100).reshape(6, 3, 10, 10).sin()
TARGETS = torch.arange(6) % 3


@pytest.mark.parametrize("view", [False, True])
def test_networks_agree_with_jacobians_in_float64(view: bool) -> None:
    model = Convolutions(view)
    kernel = empirical_ntk(model, INPUTS)
    exact = model.double()
    rows = []
    for x in INPUTS.double():
        for value in exact(x[None])[0]:
            grads = torch.autograd.grad(value, list(exact.parameters()), retain_graph=True)
            rows.append(torch.cat([grad.flatten() for grad in grads]))
    expected = (torch.stack(rows) @ torch.stack(rows).T).reshape(6, 3, 6, 3)
    found = kernel.double()
    assert found.shape in (expected.shape, (6, 6, 3, 3))
    if found.shape != expected.shape:
        found = found.permute(0, 2, 1, 3)
    assert differs(expected, found) < 1e-5


def test_a_network_that_needs_its_format_runs_in_it() -> None:
    problem = Problem(model := Convolutions(view=True), F.cross_entropy, INPUTS, TARGETS)
    first = evaluate(problem).eigenvalues()
    assert model.runs == 2  # the second time as it is
    again = evaluate(problem).eigenvalues()
    assert model.runs == 3  # which is remembered
    other = evaluate(Problem(Convolutions(view=False), F.cross_entropy, INPUTS, TARGETS))
    torch.testing.assert_close(first, again)
    assert differs(first, other.eigenvalues()) < 1e-5
    assert all(p.is_contiguous() for p in model.parameters())


class Broken(Convolutions):
    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        if self.runs < 3:
            raise ValueError(f"broken in run {self.runs}")
        return out


def test_an_error_of_the_network_is_raised() -> None:
    problem = Problem(model := Broken(view=False), F.cross_entropy, INPUTS, TARGETS)
    with pytest.raises(ValueError, match="broken in run 2"):
        evaluate(problem)
    evaluate(problem)
    assert model.runs == 3  # nothing was concluded from the error: still in the other format


def test_double_precision_is_left_alone() -> None:
    runs = Substitutes()
    maps, weight = leaf(2, 3, 4, 4).double(), leaf(2, 3, 3, 3).double()
    assert runs.run(F.conv2d, (maps, weight), {}).is_contiguous()
    assert not runs.changed_format
