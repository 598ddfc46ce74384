"""Max pooling before a ReLU: the same values and derivatives, and only where it is allowed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_vivit.matrixfree.twice import TwiceDifferentiable

POOLS = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def both(run, x):
    """Result and gradient, plain and lean, and the last operation of the lean one."""
    found = []
    for lean in (False, True):
        own = x.clone().requires_grad_()
        with TwiceDifferentiable(lean=lean):
            out = run(own)
        torch.manual_seed(1)
        cotangent = torch.randn(out.shape).double().requires_grad_()
        (gradient,) = torch.autograd.grad(out, own, cotangent, create_graph=True)
        (pushed,) = torch.autograd.grad(gradient, cotangent, torch.ones_like(gradient))
        found.append((out.detach(), gradient.detach(), pushed))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    return out.grad_fn.name()


@pytest.mark.parametrize("relu", [F.relu, torch.relu, torch.Tensor.relu, nn.ReLU()])
@pytest.mark.parametrize("axes", POOLS)
@pytest.mark.parametrize("options", [{}, {"stride": 1, "padding": 1}, {"ceil_mode": True}])
def test_it_is_pooled_before_the_relu(options, axes, relu):
    torch.manual_seed(0)
    x = torch.randn(2, 3, *[7] * axes).double() - 0.5  # some windows have no positive entry
    run = lambda x: POOLS[axes](relu(x * 1.0), 2, **options)  # noqa: E731
    assert both(run, x) == "ReluBackward0"


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


def test_what_autograd_refuses_is_refused():
    x = torch.randn(2, 3, 4, 4).double().requires_grad_()
    with TwiceDifferentiable(lean=True):
        y = F.relu(x * 2.0)
        y += 0.1
        out = F.max_pool2d(y, 2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()
