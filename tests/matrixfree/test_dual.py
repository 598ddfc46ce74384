"""The search among vectors over samples and outputs: layers that are kept as cotangents."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_vivit import Problem, evaluate
from lightning_vivit.matrices.ggn import GGN
from lightning_vivit.matrixfree.products import Products


class Tied(nn.Module):
    """The second layer's weight is the first one's, transposed; a third is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice = nn.Linear(30, 20), nn.Linear(20, 20)
        self.last = nn.Linear(30, 3)

    def forward(self, x):
        hidden = torch.tanh(self.twice(torch.tanh(self.twice(torch.tanh(self.first(x))))))
        return self.last(torch.tanh(hidden @ self.first.weight))


class Derived(nn.Module):
    """A weight also counts through a tensor that is made of it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(30, 20), nn.Linear(30, 3)

    def forward(self, x):
        return self.last(torch.tanh(torch.tanh(self.first(x)) @ (2 * self.first.weight)))


class Tokens(nn.Module):
    """Few positions: 4 samples with 3 tokens of 40 entries."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(40, 50), nn.Linear(50, 3)

    def forward(self, x):
        return self.outer(torch.relu(self.inner(x)).mean(1))


class Scaled(nn.Module):
    """Parametrised and half frozen layers, and one that does not influence the outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.utils.parametrizations.weight_norm(nn.Linear(30, 25))
        self.second, self.last = nn.Linear(25, 28), nn.Linear(28, 3, bias=False)
        self.unused = nn.Linear(5, 5)
        self.second.bias.requires_grad_(False)

    def forward(self, x):
        return self.last(torch.tanh(self.second(torch.tanh(self.first(x)))))


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(30, 25), nn.ReLU(), nn.Linear(25, 28), nn.Tanh(), nn.Linear(28, 3)
    )


def maps(rank: int, groups: int = 1) -> nn.Module:
    conv, pool = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1], (4, 2, 2)[rank - 1]
    first = conv(2, 8, 3, padding=1, stride=2, groups=groups)
    return nn.Sequential(first, nn.Tanh(), conv(8, 6, pool), nn.Flatten(), nn.LazyLinear(3))


NETS = {
    "mlp": (mlp, (4, 30), 3),
    "tied": (Tied, (4, 30), 1),
    "derived": (Derived, (4, 30), 0),
    "tokens": (Tokens, (4, 3, 40), 2),
    "scaled": (Scaled, (4, 30), 2),
    "conv1d": (lambda: maps(1), (4, 2, 16), 1),
    "conv2d": (lambda: maps(2), (4, 2, 8, 8), 1),
    "conv2d groups": (lambda: maps(2, 2), (4, 2, 8, 8), 1),
    "conv3d": (lambda: maps(3), (4, 2, 6, 6, 6), 1),
}


def problem_of(name: str, loss: nn.Module) -> tuple[Problem, int]:
    make, shape, layers = NETS[name]
    torch.manual_seed(0)
    model, inputs = make().double(), torch.randn(shape).double()
    model(inputs)  # lazy layers
    labels = torch.tensor([0, 2, 1, 2])
    targets = labels if isinstance(loss, nn.CrossEntropyLoss) else F.one_hot(labels, 3).double()
    return Problem(model, loss, inputs, targets), layers


@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), nn.MSELoss(reduction="sum")])
@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("groups", ["all", "layer", "parameter"])
def test_pairs_and_directions_are_those_of_the_gram_matrix(name, loss, groups):
    problem, _ = problem_of(name, loss)
    if groups != "all" and name == "scaled":  # a group without any influence is refused
        problem.model.unused.requires_grad_(False)
    k = 2
    found = evaluate(problem, method="matrix_free", k=k, tol=1e-9, param_groups=groups)
    exact = evaluate(problem, param_groups=groups)
    for group in exact.groups:
        pairs = found.eigenpairs(group)
        values = exact.eigenvalues(group)[-k:]
        torch.testing.assert_close(pairs.values, values, rtol=1e-7, atol=1e-12)
        if values[0] < 1e-6 * values[1] or values[1] - values[0] < 1e-3 * values[1]:
            continue
        mine, theirs = found.directions(group, k), exact.directions(group, k)
        torch.testing.assert_close(mine.gammas.abs(), theirs.gammas.abs(), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(mine.lambdas, theirs.lambdas, rtol=1e-5, atol=1e-7)
        vectors = found.eigenvectors(group, k)
        for name_, expected in exact.eigenvectors(group, k).items():
            gram = torch.einsum("k...,k...->k", vectors[name_], vectors[name_])
            torch.testing.assert_close(
                gram, torch.einsum("k...,k...->k", expected, expected), rtol=1e-5, atol=1e-8
            )


@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize("name", NETS)
def test_products_are_those_of_the_parameters(name):
    problem, layers = problem_of(name, nn.CrossEntropyLoss())
    names = list(problem.trainable())
    products = Products(problem, names, GGN())
    space = products.space(names)
    dual = products.dual(space)
    assert dual is not None and len(dual._layers) == layers
    columns = torch.randn(3, dual.size).double()
    forms = columns.new_empty(3, dual.width)
    images = dual(columns, forms)
    vectors = dual.expand(forms)
    torch.testing.assert_close(dual.push(vectors), images)
    torch.testing.assert_close(vectors @ vectors.T, columns @ images.T)
    torch.testing.assert_close(dual.squares(dual.pull(columns)), vectors.square().sum(1))
    slopes, curvatures = products.derivatives(space, vectors)
    torch.testing.assert_close(products.along(dual.pushed(forms)), (slopes, curvatures))
    expected = products.multiply(space, vectors)  # G V u = scale V V^T V u
    torch.testing.assert_close(products.scale * dual.expand(dual.pull(images)), expected)


def test_an_overwritten_input_counts_as_autograd_counts_it():
    class Overwriting(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(30, 28), nn.Linear(28, 3)

        def forward(self, x):
            hidden = x * 1.0
            out = self.first(hidden)
            with torch.no_grad():
                hidden.data.mul_(2.0)  # behind autograd's back
            return self.last(torch.tanh(out))

    torch.manual_seed(0)
    model, inputs = Overwriting().double(), torch.randn(4, 30).double()
    problem = Problem(model, nn.CrossEntropyLoss(), inputs, torch.tensor([0, 1, 2, 0]))
    names = list(problem.trainable())
    products = Products(problem, names, GGN())
    space = products.space(names)
    dual = products.dual(space)
    assert dual is not None
    columns = torch.randn(2, dual.size).double()
    forms = columns.new_empty(2, dual.width)
    images = dual(columns, forms)
    expected = products.multiply(space, dual.expand(forms))  # whatever autograd says
    torch.testing.assert_close(products.scale * dual.expand(dual.pull(images)), expected)
