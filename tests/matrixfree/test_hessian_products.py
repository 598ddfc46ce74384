"""Products with the loss Hessian against its root, and Monte-Carlo columns against the Hessian."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_vivit import Problem, evaluate
from lightning_vivit.demo.gpt import GPT
from lightning_vivit.losses import LossCall, make_loss
from lightning_vivit.matrices.ggn import GGN
from lightning_vivit.matrixfree.products import Products
from lightning_vivit.samples.layout import SampleLayout

CALLS = {
    "cross_entropy": ({"label_smoothing": 0.1, "ignore_index": 1}, "classes"),
    "nll_loss": ({"traced": True, "reduction": "sum"}, "classes"),
    "mse_loss": ({}, "numbers"),
    "binary_cross_entropy_with_logits": ({"pos_weight": torch.tensor(2.0)}, "shares"),
    "custom": ({"function": lambda f, y: (f - y).square().exp().sum() / 9}, "shares"),
}


def loss_of(name: str, shape: tuple[int, ...], samples: int, minor: bool = False):
    torch.manual_seed(0)
    outputs = torch.randn(*shape, dtype=torch.float64)
    options, kind = CALLS[name]
    target = {
        "classes": torch.randint(0, shape[1], (shape[0], *shape[2:])),
        "numbers": torch.randn(shape).double(),
        "shares": torch.rand(shape).double(),
    }[kind]
    return make_loss(LossCall(name, outputs, target, options), SampleLayout(samples, minor))


@pytest.mark.parametrize("minor", [False, True])
@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 3)])
@pytest.mark.parametrize("name", CALLS)
def test_products_are_those_of_the_root(name, shape, minor):
    loss = loss_of(name, shape, 3, minor)
    root = loss.hessian_root()
    vectors = torch.randn(3, root.shape[1], 2, dtype=torch.float64)
    expected = root @ (root.mT @ vectors)
    torch.testing.assert_close(loss.hessian_product(vectors), expected)
    torch.testing.assert_close(loss.hessian_product(vectors.clone(), overwrite=True), expected)


class Shift(nn.Module):
    """J v is v itself (one sample), or v for each of the samples in the same memory."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.randn(1, 4, dtype=torch.float64))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.shift.expand(inputs.shape[0], 4)


@pytest.mark.parametrize("samples", [1, 3])
def test_vectors_are_left_as_they_are_where_the_jacobian_is_the_identity(samples):
    inputs, targets = torch.zeros(samples, 4).double(), torch.arange(samples)
    problem = Problem(Shift(), nn.CrossEntropyLoss(), inputs, targets)
    products = Products(problem, ["shift"], GGN())
    vectors = torch.randn(2, 4, dtype=torch.float64)
    before = vectors.clone()
    found = products.multiply(products.space(["shift"]), vectors)
    single = products.multiply(products.space(["shift"]), vectors[:1])
    assert torch.equal(vectors, before)
    p = problem.model.shift[0].detach().softmax(0)
    expected = vectors @ (p.diag() - torch.outer(p, p))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(single, expected[:1])


def test_a_saturated_softmax_keeps_its_digits():
    """p (v - p.v) with a probability of 1 - 1e-9 loses nothing in single precision."""
    logits = torch.tensor([[20.7, 0.0, -1.0]])
    call = LossCall("cross_entropy", logits, torch.tensor([0]), {})
    vectors = torch.tensor([[[1.0], [3.0], [-2.0]]])
    found = make_loss(call, SampleLayout(1)).hessian_product(vectors)
    precise = LossCall("cross_entropy", logits.double(), torch.tensor([0]), {})
    expected = make_loss(precise, SampleLayout(1)).hessian_product(vectors.double())
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)


def test_custom_losses_of_many_outputs_form_no_root():
    outputs = torch.randn(2, 3000, dtype=torch.float64)

    def function(f: Tensor, y: Tensor) -> Tensor:
        return (f - y).square().sum() / len(f)

    call = LossCall("custom", outputs, torch.zeros(2, 3000).double(), {"function": function})
    loss = make_loss(call, SampleLayout(2))
    vectors = torch.randn(2, 3000, 1, dtype=torch.float64)
    torch.testing.assert_close(loss.hessian_product(vectors), 2 * vectors)
    assert loss._root is None


@pytest.mark.parametrize("name", ["mse_loss", "cross_entropy", "binary_cross_entropy_with_logits"])
@pytest.mark.parametrize("shape", [(3, 4), (6, 4)])
def test_random_columns_have_the_hessian_as_their_mean(name, shape):
    """Per sample, and for sequences with one column and independent draws for each token."""
    loss = loss_of(name, shape, 3)
    root = loss.hessian_root()
    expected = root @ root.mT  # [N, D, D], block diagonal over the tokens
    draws = 40_000
    columns = loss.sampled_root(draws, torch.Generator().manual_seed(0)) * draws**0.5
    products = torch.einsum("ndm,nem->ndem", columns, columns)
    error = products.std(-1) / draws**0.5
    off = (products.mean(-1) - expected).abs()
    assert bool((off <= 5 * error + 1e-12).all())  # 5 deviations: 3e-5 for 192 entries


def test_random_gram_matrices_of_sequences_have_the_exact_trace_and_products_as_their_mean():
    torch.manual_seed(0)
    model = GPT(5, width=4, depth=1, heads=2, window=3).double()
    index, targets = torch.randint(0, 5, (2, 3)), torch.randint(0, 5, (2, 3))
    problem = Problem(model, lambda f, y: F.cross_entropy(f.transpose(1, 2), y), index, targets)
    exact = evaluate(problem, kernel=False)
    traces, firsts = [], []
    generator = torch.Generator().manual_seed(0)
    for _ in range(400):
        found = evaluate(problem, method="mc", generator=generator)
        assert found.eigenvalues().numel() == 2  # one column for each sequence
        traces.append(found.eigenvalues().sum())
        firsts.append(found.gradient_norm_squared())
    traces = torch.stack(traces)
    error = traces.std() / len(traces) ** 0.5
    assert abs(float(traces.mean() - exact.eigenvalues().sum())) < 4 * float(error)
    assert float(error / traces.mean()) < 0.05
    torch.testing.assert_close(torch.stack(firsts), exact.gradient_norm_squared().expand(400))
