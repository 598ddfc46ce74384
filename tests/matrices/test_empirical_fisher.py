"""The empirical Fisher against explicit per-sample gradients in float64.

A sample's gradient is that of the reduced loss with all other samples' outputs held fixed, by one
backward pass for each sample, over the scale of the reduction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from oracle.networks import N
from oracle.reference import case, names
from torch import Tensor, nn

from lightning_vivit import (
    Evaluation,
    MatrixFreeEvaluation,
    OptionError,
    Problem,
    directional_derivatives,
    evaluate,
)
from lightning_vivit.evaluation import build_exact
from lightning_vivit.matrices.empirical_fisher import EmpiricalFisher
from lightning_vivit.matrixfree.products import Products

NETWORKS = [
    "mlp_relu",
    "cnn_padding_dilation_pooling",
    "segmentation",
    "gpt_tied",
    "transformer_sequence_first",
    "lstm",
    "frozen_layers",
    "embedding_bag",
]
WEIGHT = torch.tensor([0.5, 2.0, 1.3], dtype=torch.float64)


def logits(outputs: Tensor) -> Tensor:
    return outputs.transpose(1, 2) if outputs.ndim == 3 else outputs


def classes(outputs: Tensor) -> Tensor:
    shape = logits(outputs).shape
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 3, (shape[0], *shape[2:]), generator=generator)


def numbers(outputs: Tensor) -> Tensor:
    return torch.rand(outputs.shape, generator=torch.Generator().manual_seed(4)).double()


LOSSES: dict[str, tuple[Callable[[str], Callable[[Tensor, Tensor], Tensor]], Callable]] = {
    "weighted": (
        lambda how: lambda out, y: F.cross_entropy(logits(out), y, weight=WEIGHT, reduction=how),
        classes,
    ),
    "ignored": (
        lambda how: (
            lambda out, y: F.cross_entropy(
                logits(out), y, ignore_index=1, label_smoothing=0.1, reduction=how
            )
        ),
        classes,
    ),
    "squared": (lambda how: lambda out, y: F.mse_loss(out, y, reduction=how), numbers),
    "binary": (
        lambda how: (
            lambda out, y: F.binary_cross_entropy_with_logits(
                out, y, pos_weight=torch.tensor(1.7), reduction=how
            )
        ),
        numbers,
    ),
}


@dataclass
class Explicit:
    """Per-sample gradients, and what follows from them."""

    problem: Problem
    gradients: Tensor  # [N, P]
    scale: float

    @classmethod
    def of(cls, name: str, loss: str, reduction: str) -> Explicit:
        found = case(name)
        make, target_of = LOSSES[loss]
        function = make(reduction)
        outputs = found.model(found.inputs)
        targets = target_of(outputs)
        scale = 1 / N if reduction == "mean" else 1.0
        parameters = [p for p in found.model.parameters() if p.requires_grad]
        rows = []
        for n in range(N):
            alone = found.model(found.inputs[n : n + 1])
            whole = torch.cat([outputs[:n].detach(), alone, outputs[n + 1 :].detach()])
            grads = torch.autograd.grad(
                function(whole, targets) / scale, parameters, materialize_grads=True
            )
            rows.append(torch.cat([grad.flatten() for grad in grads]))
        problem = Problem(found.model, function, found.inputs, targets, reduction=reduction)
        return cls(problem, torch.stack(rows), scale)

    @property
    def fisher(self) -> Tensor:
        """[P, P]."""
        return self.scale * self.gradients.T @ self.gradients

    def check(self, found: Evaluation | MatrixFreeEvaluation, k: int, tolerance: float) -> None:
        """Eigenpairs, slopes and curvatures along the k leading eigenvectors."""
        values = torch.linalg.eigvalsh(self.fisher)[-k:]
        size = values[-1]
        assert float((found.eigenvalues(k=k) - values).abs().max() / size) < tolerance
        named = found.eigenvectors(k=k)
        vectors = torch.cat([named[name].flatten(1) for name in found.groups["all"]], dim=1)
        identity = torch.eye(k, dtype=torch.float64)
        assert float((vectors @ vectors.T - identity).abs().max()) < tolerance
        residuals = vectors @ self.fisher - values[:, None] * vectors
        assert float(residuals.norm(dim=1).max() / size) < tolerance**0.5
        directions = found.directions(k=k)
        slopes = self.gradients @ vectors.T
        off = (directions.gammas.abs() - slopes.abs()).abs().max() / slopes.abs().max()
        assert float(off) < tolerance**0.5
        off = (directions.lambdas - slopes.square()).abs().max() / slopes.square().max()
        assert float(off) < tolerance**0.5
        torch.testing.assert_close(directions.curvatures(), found.eigenvalues(k=k))
        assert directions.scale == pytest.approx(self.scale)


def separated(explicit: Explicit) -> int:
    """Leading eigenvalues of which each is well apart from the next one."""
    values = torch.linalg.eigvalsh(explicit.fisher).flip(0)
    k = 0
    while k < 3 and values[k] - values[k + 1] > 1e-2 * values[0]:
        k += 1
    return k


@pytest.mark.parametrize("kernel", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", NETWORKS)
def test_gram_matrix(name, loss, reduction, kernel):
    explicit = Explicit.of(name, loss, reduction)
    found = evaluate(explicit.problem, matrix="empirical_fisher", kernel=kernel)
    values = found.eigenvalues()
    assert values.shape == (N,) and found.num_directions == N
    known = explicit.scale * torch.linalg.eigvalsh(explicit.gradients @ explicit.gradients.T)
    assert float((values - known).abs().max() / known[-1]) < 1e-9
    torch.testing.assert_close(values.sum(), explicit.fisher.trace())
    explicit.check(found, separated(explicit), 1e-9)
    gradient = explicit.scale * explicit.gradients.sum(0)
    torch.testing.assert_close(found.gradient_norm_squared(), gradient.square().sum())
    torch.testing.assert_close(found.gradient_norms(), explicit.gradients.norm(dim=1))
    if kernel:
        torch.testing.assert_close(found.ntk(), evaluate(explicit.problem).ntk())


@pytest.mark.parametrize("microbatch", [None, 3, 1])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("mlp_relu", "weighted"),
        ("mlp_relu", "squared"),
        ("frozen_layers", "binary"),
        ("segmentation", "ignored"),
        ("gpt_tied", "ignored"),
        ("gpt_tied", "weighted"),
    ],
)
def test_matrix_free(name, loss, reduction, microbatch):
    """Also where microbatches are normalised by other numbers than the whole batch."""
    explicit = Explicit.of(name, loss, reduction)
    found = evaluate(
        explicit.problem,
        matrix="empirical_fisher",
        method="matrix_free",
        k=3,
        tol=1e-8,
        microbatch=microbatch,
    )
    explicit.check(found, separated(explicit), 1e-7)
    trace = found.trace()
    known = float(explicit.fisher.trace())
    assert trace.value == pytest.approx(known, abs=6 * trace.error + 1e-9 * known)


@pytest.mark.parametrize("microbatch", [None, 2])
@pytest.mark.parametrize("name", ["cnn_padding_dilation_pooling", "lstm"])
def test_products(name, microbatch):
    explicit = Explicit.of(name, "weighted", "mean")
    own = names(case(name).model)
    products = Products(explicit.problem, own, EmpiricalFisher(), microbatch=microbatch)
    space = products.space(own)
    vectors = torch.randn(3, space.size, dtype=torch.float64)
    expected = vectors @ explicit.fisher
    torch.testing.assert_close(products.multiply(space, vectors), expected)
    torch.testing.assert_close(products.quadratic(space, vectors), (vectors * expected).sum(1))
    slopes, curvatures = products.derivatives(space, vectors)
    torch.testing.assert_close(slopes, explicit.gradients @ vectors.T)
    torch.testing.assert_close(curvatures, slopes.square())


def wide() -> Explicit:
    """More parameters than twice the outputs: the search goes among vectors of N entries."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 25), nn.Tanh(), nn.Linear(25, 3)).double()
    inputs, targets = torch.randn(6, 30).double(), torch.arange(6) % 3
    outputs = model(inputs)
    rows = []
    for n in range(6):
        loss = F.cross_entropy(outputs[n], targets[n])
        grads = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
        rows.append(torch.cat([grad.flatten() for grad in grads]))
    return Explicit(
        Problem(model, nn.CrossEntropyLoss(), inputs, targets), torch.stack(rows), 1 / 6
    )


def test_a_search_among_samples():
    explicit = wide()
    own = list(explicit.problem.trainable())
    products = Products(explicit.problem, own, EmpiricalFisher())
    dual = products.dual(products.space(own))
    assert dual is not None and dual.size == 6
    found = evaluate(
        explicit.problem, matrix="empirical_fisher", method="matrix_free", k=3, tol=1e-8
    )
    explicit.check(found, 3, 1e-7)
    more = found.eigenvalues(k=6)  # all there are
    torch.testing.assert_close(more, torch.linalg.eigvalsh(explicit.fisher)[-6:])
    again = evaluate(
        explicit.problem,
        matrix="empirical_fisher",
        method="matrix_free",
        k=3,
        tol=1e-8,
        start=found.warm_start(),
    )
    torch.testing.assert_close(again.eigenvalues(), found.eigenvalues(k=3))
    assert again.products < found.products


@pytest.mark.parametrize("method", ["gram", "matrix_free"])
def test_groups_are_diagonal_blocks(method):
    explicit = wide()
    found = evaluate(
        explicit.problem,
        matrix="empirical_fisher",
        method=method,
        param_groups="layer",
        k=2,
        tol=1e-8,
        kernel=False,
    )
    parts = explicit.gradients.split([30 * 25 + 25, 25 * 3 + 3], dim=1)
    for group, part in zip(found.groups, parts, strict=True):
        values = torch.linalg.eigvalsh(part @ part.T / 6)[-2:]
        torch.testing.assert_close(found.eigenvalues(group, k=2), values)


def test_subsets_of_the_samples():
    explicit = wide()
    found = evaluate(explicit.problem, matrix="empirical_fisher", kernel=False)
    some = explicit.gradients[[1, 4, 5]]
    values = torch.linalg.eigvalsh(some @ some.T / 3)
    torch.testing.assert_close(found.eigenvalues(samples=[1, 4, 5]), values)
    directions = found.directions(k=2, ggn_samples=[1, 4, 5], grad_samples=[0, 2])
    vectors = torch.linalg.eigh(some.T @ some / 3).eigenvectors[:, -2:]
    slopes = explicit.gradients[[0, 2]] @ vectors
    torch.testing.assert_close(directions.gammas.abs(), slopes.abs())
    torch.testing.assert_close(directions.lambdas, (some @ vectors).square())


def test_one_column_is_backpropagated(monkeypatch):
    """Not one for each output, unless somebody asks for the NTK."""
    explicit, seen = wide(), []
    original = build_exact.compute_kernels

    def spy(task, **options):
        seen.append(len(task.columns))
        return original(task, **options)

    monkeypatch.setattr(build_exact, "compute_kernels", spy)
    evaluate(explicit.problem, matrix="empirical_fisher")
    evaluate(explicit.problem, matrix="empirical_fisher", kernel=True)
    assert seen == [1, 3]


@pytest.mark.parametrize("max_memory", [30_000, None])
def test_memory_limits(max_memory):
    explicit = wide()
    options = {"matrix": "empirical_fisher", "max_memory": max_memory, "k": 3, "tol": 1e-8}
    for method in ("gram", "matrix_free", "auto"):
        explicit.check(evaluate(explicit.problem, method=method, **options), 3, 1e-7)


def test_backpack():
    explicit = wide()
    found = evaluate(explicit.problem, matrix="empirical_fisher", backend="backpack", kernel=False)
    explicit.check(found, 3, 1e-9)


def test_the_function():
    explicit = wide()
    found = directional_derivatives(explicit.problem, k=2, matrix="empirical_fisher")
    vectors = torch.linalg.eigh(explicit.fisher).eigenvectors[:, -2:]
    slopes = explicit.gradients @ vectors
    torch.testing.assert_close(found.gammas.abs(), slopes.abs())
    torch.testing.assert_close(found.lambdas, slopes.square())
    with pytest.raises(OptionError, match="eigenvectors of the Hessian are not supported"):
        directional_derivatives(explicit.problem, k=2, matrix="hessian")
