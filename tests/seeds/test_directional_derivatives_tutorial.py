"""The checks of ViViT's tutorial on directional derivatives, through our functions."""

from __future__ import annotations

import pytest
import torch
from backpack import extend
from backpack.utils.examples import _autograd_ggn_exact_columns
from torch import Tensor
from torch.nn import Linear, MSELoss, ReLU, Sequential
from torch.nn.utils import parameters_to_vector

from lightning_vivit import directional_derivatives

N, K = 4, 4


def close(first: Tensor, second: Tensor) -> bool:
    return torch.allclose(first, second, rtol=1e-4, atol=1e-7)


@pytest.fixture(scope="module")
def tutorial():
    torch.manual_seed(0)
    x, y = torch.rand(N, 7), torch.rand(N, 3)
    model = Sequential(Linear(7, 5), ReLU(), Linear(5, 5), ReLU(), Linear(5, 3))
    loss = MSELoss(reduction="mean")
    directions = directional_derivatives(model, loss, x, y, K)
    extend(model)
    extend(loss)

    def ggn(inputs: Tensor, targets: Tensor) -> Tensor:
        columns = _autograd_ggn_exact_columns(inputs, targets, model, loss)
        return torch.stack([column for _, column in columns])

    def gradient(n: int) -> Tensor:
        value = loss(model(x[[n]]), y[[n]])
        return parameters_to_vector(torch.autograd.grad(value, list(model.parameters())))

    values, vectors = torch.linalg.eigh(ggn(x, y))
    gradients = torch.stack([gradient(n) for n in range(N)])
    ggns = torch.stack([ggn(x[[n]], y[[n]]) for n in range(N)])
    return directions, gradients, ggns, values[-K:], vectors[:, -K:]


def test_first_order(tutorial) -> None:
    directions, gradients, _, _, vectors = tutorial
    assert close(directions.gammas.float().abs(), (gradients @ vectors).abs())


def test_second_order(tutorial) -> None:
    directions, _, ggns, _, vectors = tutorial
    expected = torch.einsum("ik,nij,jk->nk", vectors, ggns, vectors)
    assert close(directions.lambdas.float(), expected)


def test_mean_of_second_order_is_the_eigenvalue(tutorial) -> None:
    directions, _, _, values, _ = tutorial
    assert close(directions.lambdas.mean(0).float(), values)
    assert close(directions.eigenvalues.float(), values)
