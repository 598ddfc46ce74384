"""The extensions and computations under BackPACK against explicit Jacobians, in float64."""

from __future__ import annotations

import importlib
import itertools
import math
from typing import Any

import pytest
import torch
from backpack import backpack, extend
from backpack_layers import NETWORKS, build
from torch import Tensor, nn

import lightning_vivit
from lightning_vivit import OptionError, ProblemError, ggn_eigenvalues
from lightning_vivit.backpack.computations import (
    DirectionalDampedNewtonComputation,
    DirectionalDerivativesComputation,
    EighComputation,
    EigvalshComputation,
)
from lightning_vivit.extensions import ViViTGGNExact, ViViTGGNMC

LOSSES = {"mse": nn.MSELoss, "cross_entropy": nn.CrossEntropyLoss}


def jacobian(model: nn.Module, inputs: Tensor) -> Tensor:
    """[N, C, P] by one backward pass for each sample and output."""
    parameters = list(model.parameters())
    rows = []
    for n in range(len(inputs)):
        for value in model(inputs[n : n + 1]).flatten():
            grads = torch.autograd.grad(value, parameters, retain_graph=True)
            rows.append(torch.cat([grad.flatten() for grad in grads]))
    return torch.stack(rows).reshape(len(inputs), -1, rows[0].numel()).detach()


class Problem:
    def __init__(self, name: str, loss: str, reduction: str) -> None:
        self.model, self.inputs = build(name)
        self.rows = jacobian(self.model, self.inputs)
        n, c = self.rows.shape[:2]
        generator = torch.Generator().manual_seed(0)
        if loss == "mse":
            self.targets = torch.randn(n, c, generator=generator).double()
        else:
            self.targets = torch.randint(0, c, (n,), generator=generator)
        self.loss = LOSSES[loss](reduction=reduction)
        outputs = self.model(self.inputs).detach().flatten()
        shape = (n, c)

        def of_outputs(flat: Tensor) -> Tensor:
            return self.loss(flat.reshape(shape), self.targets)

        flat = self.rows.flatten(0, 1)
        hessian = torch.autograd.functional.hessian(of_outputs, outputs)
        outputs.requires_grad_()
        (gradient,) = torch.autograd.grad(of_outputs(outputs), outputs)
        self.ggn = flat.T @ hessian @ flat
        self.gradient = flat.T @ gradient
        self.sample_gradients = n * torch.einsum("ncp,nc->np", self.rows, gradient.reshape(n, c))
        blocks = hessian.reshape(n, c, n, c)
        self.sample_hessians = n * torch.stack([blocks[i, :, i] for i in range(n)])
        self.extended = extend(self.model), extend(self.loss)

    def to_single(self) -> None:
        self.model.float()
        self.inputs = self.inputs.float()
        if self.targets.is_floating_point():
            self.targets = self.targets.float()

    def backward(self, *extensions, hook=None) -> None:
        value = self.loss(self.model(self.inputs), self.targets)
        with backpack(*extensions, extension_hook=hook):
            value.backward()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", NETWORKS)
def test_exact_factors(name: str, loss: str, reduction: str) -> None:
    problem = Problem(name, loss, reduction)
    tolerance = 1e-9
    if name == "avg_pool":  # BackPACK 1.7.1 propagates through it in float32 only
        problem.to_single()
        tolerance = 1e-5
    problem.backward(ViViTGGNExact())
    parameters = list(problem.model.parameters())
    found = [p.vivit_ggn_exact for p in parameters]
    gram = sum(q["gram_mat"]() for q in found)
    c, n = gram.shape[:2]
    values = torch.linalg.eigvalsh(gram.reshape(c * n, c * n))
    expected = torch.linalg.eigvalsh(problem.ggn)
    count = min(values.numel(), expected.numel())
    scale = expected[-1]
    assert float((values[-count:] - expected[-count:]).abs().max() / scale) < tolerance
    vectors = torch.randn(2, problem.ggn.shape[0], dtype=parameters[0].dtype)
    parts = [
        part.reshape(2, *p.shape)
        for part, p in zip(
            vectors.split([p.numel() for p in parameters], 1), parameters, strict=True
        )
    ]
    seen = sum(q["V_t_mat_prod"](part) for q, part in zip(found, parts, strict=True))
    assert seen.shape == (2, c, n)
    again = torch.cat([q["V_mat_prod"](seen).flatten(1) for q in found], 1)
    assert float((again - vectors.double() @ problem.ggn).abs().max() / scale) < tolerance


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", ["relu", "conv2d", "batch_norm_2d", "embedding"])
def test_computations(name: str, loss: str) -> None:
    problem = Problem(name, loss, "mean")
    parameters = list(problem.model.parameters())
    k = 2
    group = {
        "params": parameters,
        "criterion": lambda values: list(range(values.numel() - k, values.numel())),
        "damping": lambda values, vectors, gammas, lambdas: 0.1 * torch.ones_like(values),
    }
    values, vectors = torch.linalg.eigh(problem.ggn)
    top, e = values[-k:], vectors[:, -k:]

    computation = EigvalshComputation()
    problem.backward(computation.get_extension(), hook=computation.get_extension_hook([group]))
    assert torch.allclose(computation.get_result(group)[-k:], top, rtol=1e-9)

    pairs = EighComputation()
    problem.backward(pairs.get_extension(), hook=pairs.get_extension_hook([group]))
    found, parts = pairs.get_result(group)
    assert torch.allclose(found, top, rtol=1e-9)
    flat = torch.cat([part.flatten(1) for part in parts], 1)
    assert torch.allclose((flat @ e).abs(), torch.eye(k, dtype=torch.float64), atol=1e-7)

    derivatives = DirectionalDerivativesComputation()
    hook = derivatives.get_extension_hook([group])
    problem.backward(*derivatives.get_extensions(), hook=hook)
    gammas, lambdas = derivatives.get_result(group)
    assert torch.allclose(gammas.abs(), (problem.sample_gradients @ e).abs(), rtol=1e-7, atol=1e-9)
    seen = torch.einsum("ncp,pk->nck", problem.rows, e)
    expected = torch.einsum("nck,ncd,ndk->nk", seen, problem.sample_hessians, seen)
    assert torch.allclose(lambdas, expected, rtol=1e-7, atol=1e-9)
    assert torch.allclose(lambdas.mean(0), top, rtol=1e-9)

    newton = DirectionalDampedNewtonComputation()
    problem.backward(*newton.get_extensions(), hook=newton.get_extension_hook([group]))
    step = torch.cat([part.flatten() for part in newton.get_result(group)])
    expected = -e @ ((e.T @ problem.gradient) / (top + 0.1))
    assert torch.allclose(step, expected, rtol=1e-7, atol=1e-9)
    for parameter in parameters:
        assert not hasattr(parameter, "vivit_ggn_exact")


def test_subsampling() -> None:
    problem = Problem("relu", "cross_entropy", "mean")
    ggn, grad = [0, 2], [1, 2, 3]
    group = {"params": list(problem.model.parameters()), "criterion": lambda values: [-2, -1]}
    computation = DirectionalDerivativesComputation(subsampling_grad=grad, subsampling_ggn=ggn)
    hook = computation.get_extension_hook([group])
    problem.backward(*computation.get_extensions(), hook=hook)
    gammas, lambdas = computation.get_result(group)
    rows = problem.rows[ggn]
    part = torch.einsum("ncp,ncd,ndq->pq", rows, problem.sample_hessians[ggn], rows) / len(ggn)
    values, vectors = torch.linalg.eigh(part)
    e = vectors[:, -2:]
    expected = (problem.sample_gradients[grad] @ e).abs()
    assert torch.allclose(gammas.abs(), expected, rtol=1e-7, atol=1e-9)
    assert lambdas.shape == (2, 2)
    assert torch.allclose(lambdas.mean(0), values[-2:], rtol=1e-9)


def test_blocks() -> None:
    problem = Problem("conv2d", "cross_entropy", "mean")
    groups = [{"params": [p]} for p in problem.model.parameters()]
    computation = EigvalshComputation()
    problem.backward(computation.get_extension(), hook=computation.get_extension_hook(groups))
    start = 0
    for group in groups:
        size = group["params"][0].numel()
        block = problem.ggn[start : start + size, start : start + size]
        expected = torch.linalg.eigvalsh(block)[-1]
        assert torch.allclose(computation.get_result(group)[-1], expected, rtol=1e-9)
        start += size


@pytest.mark.parametrize("loss", LOSSES)
def test_monte_carlo_error_falls_like_one_over_root_m(loss: str) -> None:
    problem = Problem("relu", loss, "mean")
    parameters = list(problem.model.parameters())

    def estimate(draws: int, seed: int) -> Tensor:
        torch.manual_seed(seed)
        problem.backward(ViViTGGNMC(mc_samples=draws))
        eye = torch.eye(problem.ggn.shape[0], dtype=torch.float64)
        parts = eye.split([p.numel() for p in parameters], 1)
        seen = sum(
            p.vivit_ggn_mc["V_t_mat_prod"](part.reshape(len(eye), *p.shape))
            for p, part in zip(parameters, parts, strict=True)
        )
        flat = seen.flatten(1)
        return flat @ flat.T

    assert torch.equal(estimate(3, 1), estimate(3, 1))
    errors = []
    for draws in (1, 10, 100, 1000):
        each = [(estimate(draws, seed) - problem.ggn).norm() for seed in range(8)]
        errors.append(float(torch.stack(each).mean() / problem.ggn.norm()))
    for fewer, more in itertools.pairwise(errors):
        assert 0.5 < (fewer / more) / math.sqrt(10) < 2.0


def test_directional_derivatives_with_several_draws() -> None:
    problem = Problem("relu", "cross_entropy", "mean")
    group = {"params": list(problem.model.parameters()), "criterion": lambda values: [-1]}
    torch.manual_seed(0)
    computation = DirectionalDerivativesComputation(mc_samples_ggn=300)
    hook = computation.get_extension_hook([group])
    problem.backward(*computation.get_extensions(), hook=hook)
    _, lambdas = computation.get_result(group)
    top = torch.linalg.eigvalsh(problem.ggn)[-1]
    assert abs(float(lambdas.mean() / top) - 1) < 0.25


def test_small_eigenvalues_warn() -> None:
    problem = Problem("relu", "cross_entropy", "mean")
    group = {"params": list(problem.model.parameters()), "criterion": lambda values: [0, -1]}
    computation = EighComputation()
    with pytest.warns(UserWarning, match="eigenvalues are small"):
        problem.backward(computation.get_extension(), hook=computation.get_extension_hook([group]))


def test_wrong_use() -> None:
    model, _ = build("relu")
    parameters = list(model.parameters())
    with pytest.raises(OptionError, match="criterion"):
        EighComputation().get_extension_hook([{"params": parameters}])
    with pytest.raises(OptionError, match="two groups"):
        EigvalshComputation().get_extension_hook([{"params": parameters}] * 2)
    with pytest.raises(OptionError, match="twice"):
        EigvalshComputation(subsampling=[0, 0])
    with pytest.raises(KeyError, match="No results"):
        EigvalshComputation().get_result({"params": parameters})


COMPUTATIONS = [
    EigvalshComputation,
    EighComputation,
    DirectionalDerivativesComputation,
    DirectionalDampedNewtonComputation,
]


def top_group(problem: Problem) -> dict[str, Any]:
    return {
        "params": list(problem.model.parameters()),
        "criterion": lambda values: [values.numel() - 1],
        "damping": lambda values, vectors, gammas, lambdas: torch.ones_like(values),
    }


def extensions_of(computation: Any) -> list[Any]:
    one = isinstance(computation, (EigvalshComputation, EighComputation))
    return [computation.get_extension()] if one else computation.get_extensions()


def flat_result(result: Any) -> Tensor:
    if isinstance(result, Tensor):
        return result.flatten().abs()
    return torch.cat([flat_result(part) for part in result])


@pytest.mark.parametrize("kind", COMPUTATIONS)
def test_one_hook_serves_several_passes_also_after_a_broken_one(kind: type) -> None:
    problem = Problem("tanh", "cross_entropy", "mean")
    group = top_group(problem)
    computation = kind()
    hook = computation.get_extension_hook([group])
    problem.backward(*extensions_of(computation), hook=hook)
    first = flat_result(computation.get_result(group))

    def broken(module: nn.Module) -> None:
        hook(module)
        if isinstance(module, nn.Linear):
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        problem.backward(*extensions_of(computation), hook=broken)
    with pytest.raises(KeyError, match="did not reach"):
        computation.get_result(group)
    for _ in range(2):
        problem.backward(*extensions_of(computation), hook=hook)
        again = flat_result(computation.get_result(group))
        torch.testing.assert_close(again, first, rtol=1e-9, atol=1e-12)


def test_the_scale_of_the_loss_is_not_in_the_gammas() -> None:
    problem = Problem("tanh", "cross_entropy", "mean")
    group, results = top_group(problem), []
    for scale in (1.0, 65536.0):
        computation = DirectionalDerivativesComputation()
        hook = computation.get_extension_hook([group])
        value = scale * problem.loss(problem.model(problem.inputs), problem.targets)
        with backpack(*computation.get_extensions(), extension_hook=hook):
            value.backward()
        results.append(flat_result(computation.get_result(group)))
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-12)


def test_a_sum_is_refused_where_the_scaling_needs_the_mean() -> None:
    problem = Problem("tanh", "mse", "sum")
    for computation in (DirectionalDerivativesComputation(), EighComputation(subsampling=[0])):
        hook = computation.get_extension_hook([top_group(problem)])
        with pytest.raises(OptionError, match="reduction='sum'"):
            problem.backward(*extensions_of(computation), hook=hook)
    group, values = top_group(problem), EigvalshComputation()
    problem.backward(values.get_extension(), hook=values.get_extension_hook([group]))
    expected = torch.linalg.eigvalsh(problem.ggn)[-1]
    torch.testing.assert_close(values.get_result(group)[-1], expected, rtol=1e-9, atol=0)


def test_frozen_parameters_have_no_result() -> None:
    problem = Problem("tanh", "cross_entropy", "mean")
    problem.model[0].weight.requires_grad_(False)
    group, computation = top_group(problem), EigvalshComputation()
    problem.backward(computation.get_extension(), hook=computation.get_extension_hook([group]))
    with pytest.raises(KeyError, match=r"did not reach.*\(6, 5\)"):
        computation.get_result(group)


def small(first: nn.Module, width: int, inputs: Tensor) -> tuple[nn.Module, Tensor, Tensor]:
    model = nn.Sequential(first, nn.Flatten(), nn.Linear(width, 3)).double()
    targets = torch.arange(len(inputs)) % 3
    expected = ggn_eigenvalues(model, nn.CrossEntropyLoss(), inputs, targets)
    value = extend(nn.CrossEntropyLoss())(extend(model)(inputs), targets)
    with backpack(ViViTGGNExact()):
        value.backward()
    gram = sum(p.vivit_ggn_exact["gram_mat"]() for p in model.parameters())
    size = 3 * len(inputs)
    return model, torch.linalg.eigvalsh(gram.reshape(size, size)), expected


def test_layers_with_options() -> None:
    torch.manual_seed(0)
    tokens = torch.tensor([[0, 0, 1], [2, 0, 3], [1, 1, 1], [6, 5, 0]])
    signal = torch.randn(4, 2, 6).double()
    for first, width, inputs in [
        (nn.Embedding(7, 4, padding_idx=0), 12, tokens),
        (nn.Conv1d(2, 3, 3, padding="same"), 18, signal),
        (nn.ConvTranspose1d(2, 4, 3, stride=2, dilation=2, groups=2, output_padding=1), 64, signal),
    ]:
        _, values, expected = small(first, width, inputs)
        torch.testing.assert_close(values, expected, rtol=1e-9, atol=1e-12)
    with pytest.raises(ProblemError, match="scale_grad_by_freq"):
        small(nn.Embedding(7, 4, scale_grad_by_freq=True), 12, tokens)
    with pytest.raises(ProblemError, match="No factor for Conv1d"):
        small(nn.Conv1d(2, 3, 3, padding=1, padding_mode="circular"), 18, signal)


def test_shared_parameters_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    value = extend(nn.MSELoss())(extend(model)(torch.randn(3, 4)), torch.randn(3, 4))
    with pytest.raises(ProblemError, match="shared by two layers"), backpack(ViViTGGNExact()):
        value.backward()


def test_one_extension_serves_several_passes() -> None:
    problem = Problem("tanh", "mse", "mean")
    extension = ViViTGGNExact()
    grams = []
    for _ in range(2):
        problem.backward(extension)
        grams.append(problem.model[0].weight.vivit_ggn_exact["gram_mat"]())
    assert torch.equal(*grams)


def test_import_paths_that_users_know() -> None:
    paths = {
        "optim": COMPUTATIONS[2:],
        "optim.directional_derivatives": COMPUTATIONS[2:3],
        "optim.directional_damped_newton": COMPUTATIONS[3:],
        "linalg.eigvalsh": COMPUTATIONS[:1],
        "linalg.eigh": COMPUTATIONS[1:2],
        "extensions.secondorder.vivit": [ViViTGGNExact, ViViTGGNMC],
    }
    assert all(getattr(lightning_vivit, kind.__name__) is kind for kind in COMPUTATIONS)
    for path, names in paths.items():
        module = importlib.import_module(f"lightning_vivit.{path}")
        assert [getattr(module, name.__name__) for name in names] == names


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_binary_cross_entropy_of_one_logit(reduction: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    x, y = torch.randn(4, 5).double(), torch.randint(0, 2, (4, 1)).double()
    plain = nn.BCEWithLogitsLoss(reduction=reduction)
    expected = ggn_eigenvalues(model, plain, x, y)
    extend(model)
    with backpack(ViViTGGNExact()):
        extend(plain)(model(x), y).backward()
    gram = sum(p.vivit_ggn_exact["gram_mat"]() for p in model.parameters())
    values = torch.linalg.eigvalsh(gram.reshape(4, 4))
    assert torch.allclose(values, expected, rtol=1e-9, atol=1e-12)


class Branches(nn.Module):
    """A residual block with a functional sum, and functional activations."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 3)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.last(self.relu(y + self.second(self.relu(y))))


def test_branching_modules_through_the_converter() -> None:
    torch.manual_seed(0)
    plain, x = Branches().double(), torch.randn(4, 5).double()
    y = torch.tensor([0, 1, 2, 0])
    expected = ggn_eigenvalues(plain, nn.CrossEntropyLoss(), x, y)
    model = extend(plain, use_converter=True)
    loss = extend(nn.CrossEntropyLoss())
    with backpack(ViViTGGNExact()):
        loss(model(x), y).backward()
    gram = sum(p.vivit_ggn_exact["gram_mat"]() for p in model.parameters())
    values = torch.linalg.eigvalsh(gram.reshape(12, 12))
    assert torch.allclose(values, expected, rtol=1e-9, atol=1e-12)
