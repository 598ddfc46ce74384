"""A rule for the user's own operation: seen, used, right, and not used where it is wrong."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_vivit import empirical_ntk, operation, register_rule, unregister_rule
from lightning_vivit.factors import OuterProduct

N, T, C, J = 4, 7, 3, 5
CALLS: list[str] = []  # of the rule


class _Filter(torch.autograd.Function):
    """y[n, t, c] = sum_j x[n, t + j - J + 1, c] w[c, j], with a backward of its own."""

    @staticmethod
    def forward(ctx, inputs, weight):
        ctx.save_for_backward(inputs, weight)
        return (windows(inputs) * weight).sum(-1)

    @staticmethod
    def backward(ctx, grad):
        inputs, weight = ctx.saved_tensors
        with torch.enable_grad():
            x, w = inputs.detach().requires_grad_(), weight.detach().requires_grad_()
            return torch.autograd.grad((windows(x) * w).sum(-1), (x, w), grad)


def windows(inputs: Tensor) -> Tensor:
    return F.pad(inputs, (0, 0, J - 1, 0)).unfold(-2, J, 1)  # [N, T, C, J]


@operation
def causal_filter(inputs, weight):
    return (windows(inputs) * weight).sum(-1)


def rule(use):
    CALLS.append(use.call.name)
    inputs, weight = use.arguments("inputs", "weight")
    columns = use.columns.reshape(*use.columns.shape[:2], T, C).transpose(2, 3)  # [N, D, C, T]
    seen = use.once("windows", lambda: windows(inputs).permute(0, 2, 3, 1))  # [N, C, J, T]
    return [(weight, OuterProduct(columns.unsqueeze(3), seen, weight.shape))]


@pytest.fixture
def registered() -> Iterator[None]:
    register_rule(causal_filter)(rule)
    yield
    unregister_rule(causal_filter)


class Model(nn.Module):
    def __init__(self, function=causal_filter):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(2, C).double()
        self.weight = nn.Parameter(torch.randn(C, J, dtype=torch.float64))
        self.last = nn.Linear(C, 2).double()
        self.function = function

    def forward(self, inputs):
        return self.last(torch.tanh(self.function(self.first(inputs), self.weight)).mean(1))


def draw() -> Tensor:
    return torch.randn(N, T, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def kernel_by_micro_batches(model: nn.Module, inputs: Tensor) -> Tensor:
    rows = []
    for sample in inputs:
        outputs = model(sample[None])[0]
        for output in outputs:
            grads = torch.autograd.grad(output, list(model.parameters()), retain_graph=True)
            rows.append(torch.cat([grad.flatten() for grad in grads]))
    jacobian = torch.stack(rows).reshape(N, 2, -1)
    return torch.einsum("ncp,mdp->nmcd", jacobian, jacobian)


def kernel_and_refused(model: nn.Module, caplog: pytest.LogCaptureFixture) -> tuple[Tensor, str]:
    """The kernel, and what the log says about parameters whose factor was not trusted."""
    with caplog.at_level(logging.INFO, logger="lightning_vivit"):
        return empirical_ntk(model, draw()), caplog.text


def test_own_operation_with_its_rule(registered: None, caplog: pytest.LogCaptureFixture) -> None:
    model, before = Model(), len(CALLS)
    kernel, refused = kernel_and_refused(model, caplog)
    torch.testing.assert_close(kernel, kernel_by_micro_batches(model, draw()))
    assert len(CALLS) > before
    assert "weight" not in refused


def test_own_operation_without_a_rule_is_right_too() -> None:
    model, before = Model(), len(CALLS)
    expected = kernel_by_micro_batches(model, draw())
    torch.testing.assert_close(empirical_ntk(model, draw()), expected)
    assert len(CALLS) == before


def test_what_an_autograd_function_hides_is_computed_densely() -> None:
    model = Model(_Filter.apply)
    expected = kernel_by_micro_batches(model, draw())
    torch.testing.assert_close(empirical_ntk(model, draw()), expected)


def test_a_wrong_rule_is_not_used(caplog: pytest.LogCaptureFixture) -> None:
    @register_rule(causal_filter)
    def wrong(use):
        return [(weight, OuterProduct(f.columns, 2 * f.inputs, f.shape)) for weight, f in rule(use)]

    try:
        model = Model()
        kernel, refused = kernel_and_refused(model, caplog)
        torch.testing.assert_close(kernel, kernel_by_micro_batches(model, draw()))
        assert "No structured Jacobian for weight" in refused
    finally:
        unregister_rule(causal_filter)


def test_outside_of_a_recording_the_function_is_as_before() -> None:
    inputs, weight = torch.randn(2, T, C), torch.randn(C, J)
    torch.testing.assert_close(
        causal_filter(inputs, weight=weight), causal_filter.__wrapped__(inputs, weight)
    )
    assert causal_filter.__name__ == "causal_filter"


def test_one_operation_has_one_rule(registered: None) -> None:
    with pytest.raises(ValueError, match="already has the rule"):
        register_rule(causal_filter)(rule)
