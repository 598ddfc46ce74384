"""Max pooling before a ReLU: the same values and derivatives, and only where it is allowed."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from lightning_vivit.problem.forms.sweeps import Substitutes
from lightning_vivit.problem.forms.twice import TwiceDifferentiable

POOLS = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


class Sweeps(TorchFunctionMode):
    """Runs operations as a pass that is recorded for sweeps does."""

    def __init__(self) -> None:
        super().__init__()
        self.forms = Substitutes()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return self.forms.run(func, args, kwargs or {})


MODES = [partial(TwiceDifferentiable, lean=True), Sweeps]


def both(run, x):
    """Result and gradients, plain and in both modes, and the last operation in them."""
    found, last = [], set()
    for mode in (nullcontext, *MODES):
        own = x.clone().requires_grad_()
        with mode():
            out = run(own)
        if mode is not nullcontext:
            last.add(out.grad_fn.name())
        torch.manual_seed(1)
        cotangent = torch.randn(out.shape).double().requires_grad_()
        (gradient,) = torch.autograd.grad(out, own, cotangent, create_graph=True)
        (pushed,) = torch.autograd.grad(gradient, cotangent, torch.ones_like(gradient))
        found.append((out.detach(), gradient.detach(), pushed))
    for other in found[1:]:
        torch.testing.assert_close(found[0], other, rtol=0, atol=0)
    (name,) = last
    return name


@pytest.mark.parametrize("relu", [F.relu, torch.relu, torch.Tensor.relu, nn.ReLU()])
@pytest.mark.parametrize("axes", POOLS)
@pytest.mark.parametrize("options", [{}, {"stride": 1, "padding": 1}, {"ceil_mode": True}])
def test_it_is_pooled_before_the_relu(options, axes, relu):
    torch.manual_seed(0)
    x = torch.randn(2, 3, *[7] * axes).double() - 0.5  # some windows have no positive entry
    run = lambda x: POOLS[axes](relu(x * 1.0), 2, **options)  # noqa: E731
    assert both(run, x) == "ReluBackward0"


@pytest.mark.parametrize(
    "run",
    [
        lambda y: F.max_pool2d(F.pad(y, (0, 1, 0, 1)), 3, stride=2),  # as TensorFlow's "same"
        lambda y: F.max_pool2d(F.pad(y, (1, 1, 1, 1), mode="constant"), (3, 4), padding=1),
        lambda y: F.max_pool2d(F.pad(y, (1, 1, 1, 1), value=0.0), 2, dilation=2, ceil_mode=True),
        lambda y: F.max_pool2d(F.pad(y, (1, 1, 1, 1), value=0.5), 2),
        lambda y: F.max_pool2d(F.pad(y, (2, 2, 2, 2)), 2, stride=1),  # windows of zeros alone
        lambda y: F.max_pool2d(F.pad(y, (-1, 1, 0, 0)), 2),
        lambda y: F.max_pool2d(F.pad(y, (0, 0, 0, 0, 1, 0)), 2),  # a channel of zeros
        lambda y: F.max_pool2d(F.pad(F.pad(y, (1, 0)), (0, 1)), 3),
    ],
)
def test_it_is_pooled_before_a_relu_and_what_was_padded(run):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 7, 7).double() - 0.5
    assert both(lambda x: run(F.relu(x * 1.0)), x) == "ReluBackward0"
    assert both(lambda x: run(F.relu(x * 1.0).pow(1)), x).startswith("MaxPool")


@pytest.mark.parametrize(
    "run",
    [
        lambda y: F.max_pool2d(F.pad(y, (1, 1, 1, 1), value=-0.5), 2),
        lambda y: F.max_pool2d(F.pad(y, (1, 1, 1, 1), mode="reflect"), 2),
        lambda y: F.max_pool2d(F.pad(y, (1, 1, 1, 1)), 3, return_indices=True)[0],
    ],
)
def test_other_padding_is_left_alone(run):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 6, 6).double() - 0.5
    assert both(lambda x: run(F.relu(x * 1.0)), x).startswith("MaxPool2D")


def test_a_relu_that_is_used_elsewhere_too():
    def run(x):
        y = F.relu(x * 2.0)
        return F.max_pool2d(y, 2) + y.mean() + F.max_pool2d(y, 2).sum()

    both(run, torch.randn(2, 3, 4, 4).double())


def overwritten_input(x):
    x = x * 2.0
    y = F.relu(x)
    with torch.no_grad():
        x.add_(1.0)
    return F.max_pool2d(y, 2)


def in_place(x):
    return F.max_pool2d(F.relu(x * 2.0, inplace=True), 2)


def hooked(x):
    y = F.relu(x * 2.0)
    y.register_hook(lambda gradient: 3 * gradient)
    return F.max_pool2d(y, 2)


def another(x):
    F.relu(x * 2.0)
    return F.max_pool2d(x * 3.0, 2)


def earlier(x):
    y = F.relu(x * 2.0)
    F.relu(x)
    return F.max_pool2d(y, 2)


def with_indices(x):
    return F.max_pool2d(F.relu(x * 2.0), 2, return_indices=True)[0]


@pytest.mark.parametrize(
    "run", [overwritten_input, in_place, hooked, another, earlier, with_indices]
)
def test_it_is_left_alone(run):
    torch.manual_seed(0)
    assert both(run, torch.randn(2, 3, 4, 4).double()).startswith("MaxPool2D")


@pytest.mark.parametrize("mode", [0, 1], ids=["search", "sweeps"])
def test_what_autograd_refuses_is_refused(mode):
    x = torch.randn(2, 3, 4, 4).double().requires_grad_()
    with MODES[mode]():
        y = F.relu(x * 2.0)
        y += 0.1
        out = F.max_pool2d(y, 2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()
