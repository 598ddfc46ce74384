"""Matrix-free results against dense matrices and the Gram matrix, on every network."""

from __future__ import annotations

import lightning.pytorch as pl
import pytest
import torch
from functions.test_functions import loss_on
from oracle.networks import NETWORKS
from oracle.reference import Reference, case, names
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_vivit import MatrixFreeEvaluation, OptionError, Problem, ProblemError, evaluate
from lightning_vivit.evaluation.request import Request
from lightning_vivit.matrices.ggn import GGN
from lightning_vivit.matrixfree.fitting_samples import graph_bytes
from lightning_vivit.matrixfree.products import Products


def free(name: str, loss: str, **options) -> tuple[MatrixFreeEvaluation, Reference, Problem]:
    function, targets, reference = loss_on(name, loss, "mean")
    found = case(name)
    problem = Problem(found.model, function, found.inputs, targets)
    options = {"k": 3, "tol": 1e-7, **options}
    evaluation = evaluate(problem, method="matrix_free", **options)
    assert isinstance(evaluation, MatrixFreeEvaluation)
    return evaluation, reference, problem


def flat(evaluation: MatrixFreeEvaluation, vectors: dict[str, Tensor]) -> Tensor:
    return torch.cat([vectors[name].flatten(1) for name in evaluation.groups["all"]], dim=1)


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@pytest.mark.parametrize("name", NETWORKS)
def test_leading_pairs_and_directions(name, loss):
    evaluation, reference, problem = free(name, loss)
    values = evaluation.eigenvalues()
    expected = reference.eigenvalues(len(values))
    assert float((values - expected).abs().max() / expected[-1]) < 1e-5
    assert evaluation.eigenpairs().converged
    exact = evaluate(problem, kernel=False)
    torch.testing.assert_close(evaluation.scale, exact.scale)
    torch.testing.assert_close(evaluation.outputs, exact.outputs)
    gradient, size = evaluation.gradient_norm_squared(), exact.gradient_norm_squared()
    torch.testing.assert_close(gradient, size, rtol=1e-8, atol=1e-12)
    k = reference.separated(3)
    if k == 0:
        return
    vectors = flat(evaluation, evaluation.eigenvectors(k=k))
    outside = vectors - vectors @ reference.vectors[:, -k:] @ reference.vectors[:, -k:].T
    assert float(torch.linalg.matrix_norm(outside, 2)) < 1e-4  # sine of the largest angle
    found, known = evaluation.directions(k=k), exact.directions(k=k)
    scale = known.gammas.abs().max()
    assert float((found.gammas.abs() - known.gammas.abs()).abs().max() / scale) < 1e-4
    scale = known.lambdas.abs().max()
    assert float((found.lambdas - known.lambdas).abs().max() / scale) < 1e-4
    torch.testing.assert_close(found.curvatures(), found.eigenvalues, rtol=1e-6, atol=1e-9)


def test_fewer_and_more_eigenvalues_than_at_the_start():
    evaluation, reference, _ = free("mlp_relu", "cross_entropy")
    for k in (2, 3, 5):
        values = evaluation.eigenvalues(k=k)
        torch.testing.assert_close(values, reference.eigenvalues(k), rtol=1e-5, atol=1e-9)
    for ask in (evaluation.eigenvalues, evaluation.directions, evaluation.eigenvectors):
        with pytest.raises(OptionError, match="k=0"):
            ask(k=0)


@pytest.mark.parametrize("microbatch", [1, 3])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("loss", ["cross_entropy", "mse", "bce", "custom"])
@pytest.mark.parametrize("name", ["mlp_relu", "gpt_tied", "transformer_sequence_first"])
def test_microbatches_equal_the_whole_batch(name, loss, reduction, microbatch):
    function, targets, reference = loss_on(name, loss, reduction)
    found = case(name)
    problem = Problem(found.model, function, found.inputs, targets)
    products = Products(problem, names(found.model), GGN(), microbatch=microbatch)
    space = products.space(names(found.model))
    vectors = torch.randn(3, space.size, dtype=torch.float64)
    product, expected = products.multiply(space, vectors), vectors @ reference.ggn
    assert float((product - expected).abs().max() / expected.abs().max()) < 1e-9
    torch.testing.assert_close(products.gradient(space), reference.gradient)
    slopes, curvatures = products.derivatives(space, vectors)
    torch.testing.assert_close(slopes, reference.sample_gradients @ vectors.T)
    forms = (vectors * expected).sum(1)
    torch.testing.assert_close(products.scale * curvatures.sum(0), forms)
    torch.testing.assert_close(
        products.sample_gradient_norms(space), reference.sample_gradients.norm(dim=1)
    )
    with torch.no_grad():
        torch.testing.assert_close(
            products.batches.value, function(found.model(found.inputs), targets)
        )


DIVIDED = {
    "by the samples": lambda out, y: (
        nn.functional.cross_entropy(out.transpose(1, 2), y, reduction="sum", ignore_index=-1)
        / len(out)
    ),
    "by the terms": lambda out, y: nn.functional.cross_entropy(
        out.transpose(1, 2), y, reduction="none", ignore_index=-1
    ).mean(),
    "ignored ones left out": lambda out, y: nn.functional.cross_entropy(
        out.transpose(1, 2), y, ignore_index=-1
    ),
    "sum over kept ones": lambda out, y: (
        nn.functional.cross_entropy(out.transpose(1, 2), y, reduction="sum", ignore_index=-1)
        / (y >= 0).sum()
    ),
    "a multiple": lambda out, y: (
        0.3 * nn.functional.cross_entropy(out.transpose(1, 2), y, ignore_index=-1)
    ),
}


def test_a_batch_that_does_not_fit_is_divided():
    function, targets, reference = loss_on("gpt_tied", "cross_entropy", "mean")
    found = case("gpt_tied")
    problem = Problem(found.model, function, found.inputs, targets)
    vectors = torch.randn(2, reference.ggn.shape[0], dtype=torch.float64)
    expected, seen = vectors @ reference.ggn, []
    for budget in (1 << 40, 20_000, 1):
        products = Products(problem, names(found.model), GGN(), max_memory=budget)
        product = products.multiply(products.space(names(found.model)), vectors)
        assert float((product - expected).abs().max() / expected.abs().max()) < 1e-9
        seen.append(products.batches.size)
    assert seen[0] == len(found.inputs) > seen[1] > seen[2] == 1
    evaluation = evaluate(problem, method="matrix_free", k=2, tol=1e-8, max_memory=1)
    exact = torch.linalg.eigvalsh(reference.ggn)[-2:]
    torch.testing.assert_close(evaluation.eigenvalues(), exact, rtol=1e-7, atol=0)


def test_memory_of_a_graph_is_what_its_operations_save():
    first, second = nn.Linear(5, 7), nn.Linear(7, 3)
    inputs = torch.randn(11, 5)
    outputs = second(first(inputs).tanh()) + inputs[:, :3].relu()
    saved = 11 * 5 + 11 * 7  # the inputs' rows and the tanh; the weights are not counted
    parameters = [*first.parameters(), *second.parameters()]
    assert graph_bytes(outputs, parameters) == 4 * saved


def test_a_step_that_cannot_be_divided_stays_whole():
    class Odd(pl.LightningModule):
        """Its loss is scaled by a number that no size of a microbatch explains."""

        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3).double()

        def training_step(self, batch, index):
            loss = nn.functional.cross_entropy(self.layer(batch[0]), batch[1], reduction="sum")
            return loss / (1.0 + len(batch[0]) ** 2)

    torch.manual_seed(0)
    batch = torch.randn(6, 4).double(), torch.arange(6) % 3
    problem = Problem.from_training_step(Odd(), batch)
    with pytest.raises(ProblemError, match="neither constant"):
        Products(problem, list(problem.trainable()), GGN(), microbatch=2)
    products = Products(problem, list(problem.trainable()), GGN(), max_memory=1)
    assert products.batches.size == 6


@pytest.mark.parametrize("microbatch", [1, 2, 3])
@pytest.mark.parametrize("how", DIVIDED)
def test_scale_of_the_whole_batch(how, microbatch):
    found = case("gpt_tied")
    targets = torch.tensor([[0, -1, 1, 2], [1, 1, 2, 0], [2, -1, -1, 1], [0, 2, 1, -1]])
    problem = Problem(found.model, DIVIDED[how], found.inputs, targets)
    whole = Products(problem, names(found.model), GGN())
    parts = Products(problem, names(found.model), GGN(), microbatch=microbatch)
    space = whole.space(names(found.model))
    vectors = torch.randn(2, space.size, dtype=torch.float64)
    torch.testing.assert_close(
        parts.multiply(space, vectors), whole.multiply(space, vectors), rtol=1e-6, atol=1e-8
    )
    torch.testing.assert_close(parts.batches.value, whole.batches.value, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("microbatch", [None, 2])
@pytest.mark.parametrize("which", ["largest", "magnitude"])
@pytest.mark.parametrize("name", ["mlp_gelu_deep", "gpt_tied", "custom_autograd_function"])
def test_hessian_against_a_dense_one(name, which, microbatch):
    function, targets, _ = loss_on(name, "cross_entropy", "mean")
    found = case(name)
    parameters = [p for p in found.model.parameters() if p.requires_grad]
    with sdpa_kernel(SDPBackend.MATH):
        loss = function(found.model(found.inputs), targets)
    grads = torch.autograd.grad(loss, parameters, create_graph=True)
    gradient = torch.cat([grad.flatten() for grad in grads])
    rows = []
    for entry in gradient:
        parts = torch.autograd.grad(entry, parameters, retain_graph=True)
        rows.append(torch.cat([part.flatten() for part in parts]))
    values = torch.linalg.eigvalsh(torch.stack(rows))
    order = values.abs().argsort() if which == "magnitude" else values.argsort()
    problem = Problem(found.model, function, found.inputs, targets)
    request = Request(k=3, tol=1e-7, matrix="hessian", microbatch=microbatch)
    groups = {"all": names(found.model)}
    evaluation = MatrixFreeEvaluation(problem, groups, request, which=which)
    torch.testing.assert_close(evaluation.eigenvalues(), values[order[-3:]])


def test_groups_are_diagonal_blocks():
    function, targets, _ = loss_on("mlp_relu", "cross_entropy", "mean")
    found = case("mlp_relu")
    problem = Problem(found.model, function, found.inputs, targets)
    free_ = evaluate(problem, method="matrix_free", param_groups="layer", k=2, tol=1e-8)
    exact = evaluate(problem, param_groups="layer")
    for group in exact.groups:
        torch.testing.assert_close(free_.eigenvalues(group), exact.eigenvalues(group)[-2:])


def test_newton_step_is_that_of_the_gram_matrix():
    evaluation, _, problem = free("mlp_gelu_deep", "cross_entropy", tol=1e-10)
    step = evaluation.newton_step(k=2, damping=0.1)
    expected = evaluate(problem).newton_step(k=2, damping=0.1)
    for name in expected:
        torch.testing.assert_close(step[name], expected[name], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("seed", range(6))
def test_all_copies_of_a_multiple_eigenvalue_are_found(seed):
    """A linear model with squared error has every eigenvalue once for each output."""
    model = nn.Linear(30, 4).double()
    torch.manual_seed(seed)
    inputs, targets = torch.randn(200, 30).double(), torch.randn(200, 4).double()
    problem = Problem(model, nn.MSELoss(), inputs, targets)
    found = evaluate(problem, method="matrix_free", k=6, tol=1e-6)
    exact = evaluate(problem).eigenvalues()[-6:]
    torch.testing.assert_close(found.eigenvalues(), exact, rtol=1e-6, atol=0)


def test_what_it_cannot_do_is_said():
    evaluation, _, _ = free("mlp_relu", "cross_entropy")
    with pytest.raises(OptionError, match="no NTK"):
        evaluation.ntk()
    with pytest.raises(OptionError, match="subset"):
        evaluation.eigenvalues(samples=[0])
    with pytest.raises(OptionError, match="Unknown parameter group"):
        evaluation.eigenvalues("other")


def test_too_few_products_give_a_warning_and_the_flag():
    _, _, problem = free("mlp_gelu_deep", "cross_entropy")
    groups = {"all": list(problem.trainable())}
    request = Request(k=3, tol=1e-7)
    evaluation = MatrixFreeEvaluation(problem, groups, request, max_products=4)
    with pytest.warns(RuntimeWarning, match="residuals up to"):
        pairs = evaluation.eigenpairs(k=3)
    assert not pairs.converged and pairs.products == 4
