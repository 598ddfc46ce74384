"""The search among samples times outputs, roots without forming them, lean convolutions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_vivit import Problem, evaluate
from lightning_vivit.evaluation.matrix_free import MatrixFreeEvaluation
from lightning_vivit.losses import LossCall, make_loss
from lightning_vivit.problem.forms.convolution import convolve
from lightning_vivit.samples.layout import SampleLayout


def wide(classes=5):
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 30)]
    return nn.Sequential(*layers, nn.Tanh(), nn.Linear(30, classes)).double()


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), nn.MSELoss(reduction="sum")])
def test_search_among_the_outputs_equals_the_gram_matrix(loss):
    model, inputs = wide(), torch.randn(6, 1, 4, 4).double()
    labels = torch.arange(6) % 5
    targets = labels if isinstance(loss, nn.CrossEntropyLoss) else F.one_hot(labels, 5).double()
    problem = Problem(model, loss, inputs, targets)
    found = evaluate(problem, method="matrix_free", k=4, tol=1e-8)
    assert isinstance(found, MatrixFreeEvaluation)
    pairs, exact = found.eigenpairs(), evaluate(problem)
    assert pairs.basis.shape[1] == 30 < pairs.vectors.shape[1]  # N*D entries in place of P
    torch.testing.assert_close(pairs.values, exact.eigenvalues()[-4:])
    mine, theirs = found.directions(k=4), exact.directions(k=4)
    torch.testing.assert_close(mine.gammas.abs(), theirs.gammas.abs(), rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(mine.lambdas, theirs.lambdas, rtol=1e-5, atol=1e-8)
    estimate, trace = found.trace(), float(exact.eigenvalues().sum())
    assert abs(estimate.value - trace) <= 5 * estimate.error + 1e-9 * trace
    again = evaluate(problem, method="matrix_free", k=4, tol=1e-6, start=found.warm_start())
    torch.testing.assert_close(again.eigenvalues(), pairs.values)
    assert again.products < found.products
    parts = evaluate(problem, method="matrix_free", k=4, tol=1e-8, microbatch=4)
    torch.testing.assert_close(parts.eigenvalues(), pairs.values)


@pytest.mark.parametrize(
    ("name", "target", "shape"),
    [
        ("cross_entropy", torch.tensor([0, 2, 1, -100]), (4, 3)),
        ("cross_entropy", torch.tensor([[0, 2], [1, 1]]), (2, 3, 2)),
        ("mse_loss", torch.randn(4, 3).double(), (4, 3)),
    ],
)
def test_products_with_a_root(name, target, shape):
    outputs = 3 * torch.randn(shape).double()
    loss = make_loss(LossCall(name, outputs, target, {}), SampleLayout(shape[0]))
    root = loss.hessian_root()
    vectors = torch.randn(shape[0], root.shape[1], 2).double()
    torch.testing.assert_close(loss.root_product(vectors), root @ vectors)
    torch.testing.assert_close(
        loss.root_product(vectors, transpose=True), root.transpose(1, 2) @ vectors
    )


@pytest.mark.parametrize("first", [True, False])  # whether it is a first layer
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [{}, {"stride": 2, "padding": 1}, {"dilation": 2, "groups": 2}, {"padding": "same"}],
)
def test_convolution_and_its_derivatives(axes, options, bias, first):
    func = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[axes]
    torch.manual_seed(0)
    x = torch.randn(2, 2, *[5] * axes).double().requires_grad_(not first)
    channels = 2 * 3**axes  # as many as keep the patches small
    shape = channels, 2 // options.get("groups", 1), *[3] * axes
    weight = torch.randn(shape).double().requires_grad_()
    shift = torch.randn(channels).double().requires_grad_() if bias else None
    leaves = [leaf for leaf in (x, weight, shift) if leaf is not None and leaf.requires_grad]

    def all_of(run):
        out = run(x, weight, shift)
        cotangent = torch.ones_like(out).requires_grad_()
        grads = torch.autograd.grad(out.sin(), leaves, cotangent, create_graph=True)
        found = [out, *grads]
        own = len(leaves) - bias - 1  # all, the weight's alone, the bias's alone
        for some in (grads, grads[own : own + 1], grads[own + 1 :]):
            if some:
                tangents = [torch.ones_like(g) for g in some]
                found += torch.autograd.grad(some, cotangent, tangents, retain_graph=True)
        columns = torch.stack([out.detach().cos(), 2 * torch.ones_like(out)])
        found += torch.autograd.grad(out, leaves, columns[0], retain_graph=True)
        found += torch.autograd.grad(out, leaves, columns, is_grads_batched=True, retain_graph=True)
        return found

    lean = all_of(lambda *args: convolve(func, args, options))
    for one, two in zip(lean, all_of(lambda *args: func(*args, **options)), strict=True):
        torch.testing.assert_close(one, two)
