"""Parameters without axes, with sparse gradients, or written to by the forward pass."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_vivit import Problem, evaluate, ggn_eigenvalues
from lightning_vivit.metrics import SubspaceOverlap

N, C = 6, 3
DRAW = torch.Generator().manual_seed(0)
X = torch.randn(N, 4, generator=DRAW, dtype=torch.float64)
TOKENS = torch.randint(0, 7, (N, 3), generator=DRAW)
Y = torch.randint(0, C, (N,), generator=DRAW)


class Scaled(nn.Module):
    """With a temperature, as contrastive models have one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.scale = nn.Linear(4, C), nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.scale.exp()


class Words(nn.Module):
    def __init__(self, **options) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(7, 4, **options), nn.Linear(12, C)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.embedding(tokens).flatten(1))


@pytest.mark.parametrize("options", [{}, {"method": "matrix_free"}, {"matrix": "hessian"}])
def test_parameters_without_axes(options) -> None:
    model = Scaled().double()
    found = evaluate(Problem(model, F.cross_entropy, X, Y), k=3, tol=1e-8, **options)
    values, vectors = found.eigenvalues()[-3:], found.eigenvectors(k=3)
    flat = torch.cat([vectors[name].reshape(3, -1) for name in vectors], dim=1)
    torch.testing.assert_close(flat @ flat.T, torch.eye(3, dtype=torch.float64))
    assert bool(vectors["scale"].any())
    metric = SubspaceOverlap()
    metric(vectors)
    torch.testing.assert_close(float(metric(vectors)), 1.0)

    def loss(vector: Tensor) -> Tensor:
        parts, start = {}, 0
        for name, parameter in model.named_parameters():
            parts[name] = vector[start : start + parameter.numel()].reshape(parameter.shape)
            start += parameter.numel()
        return F.cross_entropy(torch.func.functional_call(model, parts, (X,)), Y)

    if options.get("matrix") == "hessian":
        start = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
        expected = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, start))[-3:]
    else:
        expected = ggn_eigenvalues(model, F.cross_entropy, X, Y)[-3:]
    torch.testing.assert_close(values, expected, rtol=1e-6, atol=1e-9)


def test_sparse_gradients_of_an_embedding() -> None:
    dense, sparse = Words().double(), Words(sparse=True).double()
    found = evaluate(Problem(sparse, F.cross_entropy, TOKENS, Y))
    expected = evaluate(Problem(dense, F.cross_entropy, TOKENS, Y))
    torch.testing.assert_close(found.eigenvalues(), expected.eigenvalues())
    for name, vector in expected.gradient().items():
        torch.testing.assert_close(found.gradient()[name], vector)


def test_an_embedding_with_max_norm_keeps_its_weights() -> None:
    model = Words(max_norm=0.5).double()
    before = model.embedding.weight.detach().clone()
    found = ggn_eigenvalues(model, F.cross_entropy, TOKENS, Y)
    assert torch.equal(model.embedding.weight, before)
    model(TOKENS)  # shortens the rows that are used
    assert not torch.equal(model.embedding.weight, before)
    torch.testing.assert_close(found, ggn_eigenvalues(model, F.cross_entropy, TOKENS, Y))


def test_a_last_microbatch_with_as_many_rows_as_the_others_have_samples() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, C)).double()
    x = torch.randn(3, 2, 4, dtype=torch.float64)
    y = torch.randint(0, C, (3, 2))
    problem = Problem(model, lambda f, t: F.cross_entropy(f.flatten(0, 1), t.flatten()), x, y)
    free = evaluate(problem, method="matrix_free", microbatch=2, k=2, tol=1e-8)
    exact = evaluate(problem)
    assert free.num_samples == exact.num_samples == 3
    torch.testing.assert_close(free.eigenvalues(), exact.eigenvalues()[-2:], rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(
        free.directions(k=2).lambdas, exact.directions(k=2).lambdas, rtol=1e-5, atol=1e-7
    )
