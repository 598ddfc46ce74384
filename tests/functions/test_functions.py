"""Every function against explicit Jacobians and dense matrices, on every network and loss."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from oracle.networks import NETWORKS
from oracle.reference import Reference, case, jacobian, names, parameter_slices
from torch import Tensor

from lightning_vivit import (
    Evaluation,
    Problem,
    directional_derivatives,
    empirical_ntk,
    evaluate,
    ggn_eigenpairs,
    ggn_eigenvalues,
    newton_step,
)
from lightning_vivit.errors import OptionError

EXACT = 1e-9


def close(found: Tensor, expected: Tensor, tolerance: float = EXACT) -> None:
    scale = expected.abs().max().clamp(min=1e-12)
    assert found.shape == expected.shape
    assert float((found - expected).abs().max() / scale) < tolerance


def class_last(outputs: Tensor) -> Tensor:
    """[..., C] for token outputs and vectors; segmentation maps stay [N, C, H, W]."""
    return outputs.transpose(1, 2) if outputs.ndim == 3 else outputs


def cross_entropy(reduction: str, outputs: Tensor) -> tuple[Callable, Tensor]:
    shape = outputs.shape
    generator = torch.Generator().manual_seed(0)
    if outputs.ndim == 1:  # one number: no classes
        targets = torch.rand(shape, generator=generator, dtype=outputs.dtype)
        return lambda out, y: F.binary_cross_entropy_with_logits(
            out, y, reduction=reduction
        ), targets
    where = shape[:1] + (shape[1:-1] if outputs.ndim == 3 else shape[2:])
    targets = torch.randint(0, 3, where, generator=generator)
    return lambda out, y: F.cross_entropy(class_last(out), y, reduction=reduction), targets


def mse(reduction: str, outputs: Tensor) -> tuple[Callable, Tensor]:
    targets = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(1)).double()
    return lambda out, y: F.mse_loss(out, y.to(out), reduction=reduction), targets


def bce(reduction: str, outputs: Tensor) -> tuple[Callable, Tensor]:
    targets = torch.rand(outputs.shape, generator=torch.Generator().manual_seed(2)).double()

    def loss(out: Tensor, y: Tensor) -> Tensor:
        weight = torch.full((out.shape[-1],), 1.5, dtype=out.dtype)
        return F.binary_cross_entropy_with_logits(
            out, y.to(out), pos_weight=weight, reduction=reduction
        )

    return loss, targets


class Pseudohuber:
    """A loss without a rule: its Hessian is taken by autograd."""

    def __init__(self, reduction: str) -> None:
        self.reduction = reduction

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        total = ((outputs - targets).square() + 1).sqrt().sum()
        return total / len(outputs) if self.reduction == "mean" else total


def custom(reduction: str, outputs: Tensor) -> tuple[Callable, Tensor]:
    return Pseudohuber(reduction), mse(reduction, outputs)[1]


LOSSES = {"cross_entropy": cross_entropy, "mse": mse, "bce": bce, "custom": custom}


def loss_on(name: str, loss: str, reduction: str) -> tuple[Callable, Tensor, Reference]:
    found = case(name)
    with torch.no_grad():
        outputs = found.model(found.inputs)
    function, targets = LOSSES[loss](reduction, outputs)
    scale = 1 / len(outputs) if reduction == "mean" else 1.0
    return function, targets, Reference(name, lambda out: function(out, targets), scale)


@pytest.mark.parametrize("name", NETWORKS)
def test_kernel(name: str) -> None:
    found, rows = case(name), jacobian(name)
    full = torch.einsum("ncp,mdp->nmcd", rows, rows)
    close(empirical_ntk(found.model, found.inputs), full)
    one, two = found.inputs[:3], found.inputs[3:]
    close(empirical_ntk(found.model, one, two), full[:3, 3:])
    close(
        empirical_ntk(found.model, one, two, mode="trace"), full[:3, 3:].diagonal(0, 2, 3).sum(-1)
    )
    close(empirical_ntk(found.model, one, two, mode="diagonal"), full[:3, 3:].diagonal(0, 2, 3))
    close(empirical_ntk(found.model, found.inputs, mode="trace"), full.diagonal(0, 2, 3).sum(-1))
    close(empirical_ntk(found.model, found.inputs, mode="diagonal"), full.diagonal(0, 2, 3))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", NETWORKS)
def test_spectrum_directions_and_step(name: str, loss: str, reduction: str) -> None:
    found = case(name)
    function, targets, expected = loss_on(name, loss, reduction)
    problem = Problem(found.model, function, found.inputs, targets, reduction=reduction)
    for kernel in (True, False):  # all outputs, or the directions that the loss sees
        check_evaluation(name, loss, evaluate(problem, kernel=kernel), expected)


@pytest.mark.parametrize("kernel", [True, False])
def test_the_solved_matrix_leaves_out_what_the_loss_does_not_see(
    kernel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C - 1 columns for each sample under cross-entropy, also where the kernel has all C."""
    found, sizes = case("cnn"), []
    function, targets, _ = loss_on("cnn", "cross_entropy", "mean")
    problem = Problem(found.model, function, found.inputs, targets, reduction="mean")
    solve = torch.linalg.eigvalsh

    def noted(matrix: Tensor, **options: str) -> Tensor:
        sizes.append(len(matrix))
        return solve(matrix, **options)

    monkeypatch.setattr(torch.linalg, "eigvalsh", noted)
    result = evaluate(problem, kernel=kernel)
    n, c = result.outputs.shape
    assert result.eigenvalues().shape == (n * c,) == (result.num_directions,)
    assert sizes == [n * (c - 1)]


def check_evaluation(name: str, loss: str, result: Evaluation, expected: Reference) -> None:
    values = result.eigenvalues()
    close(values, expected.eigenvalues(values.numel()))
    close(result.gradient_norm_squared(), expected.gradient.square().sum())
    k = expected.separated()
    if k == 0:  # a linear model with mse: every eigenvalue comes C times
        assert name in ("linear", "unused_branch")
        assert loss == "mse"
        return
    directions = result.directions(k=k)
    close(directions.eigenvalues, expected.values[-k:])
    close(directions.gammas.abs(), expected.gammas(k).abs())
    close(directions.lambdas, expected.lambdas(k))
    close(directions.curvatures(), expected.values[-k:])
    step = result.newton_step(k=k, damping=0.1)
    model = case(name).model
    flat = torch.cat([step[key].flatten() for key in names(model)])
    close(flat, expected.newton_step(k, 0.1))
    vectors = result.eigenvectors(k=k)
    top = torch.cat([vectors[key].flatten(1) for key in names(model)], dim=1)  # [k, P]
    close(top.T @ top, expected.vectors[:, -k:] @ expected.vectors[:, -k:].T)


@pytest.mark.parametrize("name", ["mlp_relu", "resnet_batchnorm_eval", "gpt_tied", "weight_norm"])
@pytest.mark.parametrize("groups", ["layer", "parameter", "lists"])
def test_groups_are_diagonal_blocks(name: str, groups: str) -> None:
    found = case(name)
    function, targets, expected = loss_on(name, "cross_entropy", "mean")
    places = parameter_slices(name)
    keys = list(places)
    wanted = {"first": keys[:2], "rest": keys[2:]} if groups == "lists" else groups
    results = ggn_eigenvalues(found.model, function, found.inputs, targets, param_groups=wanted)
    members = evaluate(
        Problem(found.model, function, found.inputs, targets), param_groups=wanted
    ).groups
    assert sorted(name for group in members.values() for name in group) == sorted(keys)
    for group, values in results.items():
        index = torch.cat([torch.arange(places[k].start, places[k].stop) for k in members[group]])
        block = torch.linalg.eigvalsh(expected.ggn[index][:, index])
        count = min(block.numel(), values.numel())
        close(values[-count:], block[-count:])


def test_sample_subsets() -> None:
    found = case("mlp_relu")
    function, targets, _ = loss_on("mlp_relu", "cross_entropy", "mean")
    ggn, grad = [0, 2, 3], [1, 3]
    part = directional_derivatives(
        found.model, function, found.inputs, targets, 2, ggn_samples=ggn, grad_samples=grad
    )
    alone = directional_derivatives(found.model, function, found.inputs[ggn], targets[ggn], 2)
    close(part.eigenvalues, alone.eigenvalues)
    close(part.lambdas, alone.lambdas)
    joint = directional_derivatives(
        found.model, function, found.inputs, targets, 2, ggn_samples=ggn
    )
    close(part.gammas.abs(), joint.gammas[grad].abs())
    close(part.gradient_scale * torch.ones(()), torch.tensor(0.5))
    values = ggn_eigenvalues(found.model, function, found.inputs, targets, samples=ggn)
    close(values, ggn_eigenvalues(found.model, function, found.inputs[ggn], targets[ggn]))


def test_damping_of_all_kinds() -> None:
    found = case("mlp_relu")
    function, targets, expected = loss_on("mlp_relu", "mse", "mean")
    k = 2
    arguments = (found.model, function, found.inputs, targets, k)
    same = newton_step(*arguments, damping=0.3)
    each = newton_step(*arguments, damping=torch.tensor([0.3, 0.3], dtype=torch.float64))
    rule = newton_step(*arguments, damping=lambda values, gammas, lambdas: 0.3 + 0 * values)
    flat = torch.cat([same[key].flatten() for key in names(found.model)])
    close(flat, expected.newton_step(k, 0.3))
    for key in same:
        close(each[key], same[key])
        close(rule[key], same[key])


@pytest.mark.parametrize("name", NETWORKS)
def test_float32_top_eigenvalues(name: str) -> None:
    found = case(name)
    function, targets, expected = loss_on(name, "cross_entropy", "mean")
    inputs = found.inputs.float() if found.inputs.is_floating_point() else found.inputs
    if targets.is_floating_point():
        targets = targets.float()
    model = copy.deepcopy(found.model).float()
    values, _ = ggn_eigenpairs(model, function, inputs, targets, 1)
    top = ggn_eigenvalues(model, function, inputs, targets)[-10:]
    expected_top = expected.eigenvalues(top.numel())
    assert float((top - expected_top).abs().max() / expected_top[-1]) < 1e-4
    assert float((values - expected_top[-1:]).abs().max() / expected_top[-1]) < 1e-4


def test_few_eigenpairs_need_no_whole_spectrum(monkeypatch: pytest.MonkeyPatch) -> None:
    found = case("mlp_relu")
    function, targets, expected = loss_on("mlp_relu", "cross_entropy", "mean")

    def refuse(*arguments: object) -> None:
        raise AssertionError("all eigenvalues were computed")

    monkeypatch.setattr("lightning_vivit.evaluation.solved.gram_eigenvalues", refuse)
    values, vectors = ggn_eigenpairs(found.model, function, found.inputs, targets, 2)
    close(values, expected.eigenvalues(2))
    assert {len(part) for part in vectors.values()} == {2}
    evaluation = evaluate(Problem(found.model, function, found.inputs, targets))
    close(evaluation.eigenvalues(k=2), expected.eigenvalues(2))
    with pytest.raises(OptionError, match="k=10000 directions"):
        evaluation.eigenvalues(k=10000)
