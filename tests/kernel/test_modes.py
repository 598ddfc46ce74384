"""Kernels of networks with many outputs against explicit Jacobians in float64."""

from __future__ import annotations

import copy
from itertools import product
from typing import Any

import pytest
import torch
from oracle.reference import case, jacobian, parameter_slices
from torch import Tensor, nn

from lightning_vivit import KernelEstimate, OptionError, empirical_ntk
from lightning_vivit.jacobian.autograd import AutogradBackend
from lightning_vivit.jacobian.structure import Located

NETWORKS = [
    "mlp_relu",
    "cnn",
    "segmentation",
    "resnet_batchnorm_eval",
    "transformer_sequence_first",
    "gpt_tied",
]
EINSUMS = {"full": "ncp,mdp->nmcd", "trace": "ncp,mcp->nm", "diagonal": "ncp,mcp->nmc"}


def close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-9


@pytest.mark.parametrize("name", NETWORKS)
def test_pseudo_kernel_is_that_of_the_summed_outputs(name: str) -> None:
    rows = jacobian(name)
    summed = rows.sum(1) / rows.shape[1] ** 0.5
    found = case(name)
    close(empirical_ntk(found.model, found.inputs, mode="pseudo"), summed @ summed.T)
    cross = empirical_ntk(found.model, found.inputs[:3], found.inputs[2:], mode="pseudo")
    close(cross, summed[:3] @ summed[2:].T)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("mode", EINSUMS)
def test_chosen_outputs(name: str, mode: str) -> None:
    chosen = [2, 0]
    rows = jacobian(name)[:, chosen]
    found = empirical_ntk(case(name).model, case(name).inputs, mode=mode, outputs=chosen)
    close(found, torch.einsum(EINSUMS[mode], rows, rows))


def test_pseudo_kernel_of_chosen_outputs_and_groups() -> None:
    rows = jacobian("mlp_relu")[:, [0, 2]].sum(1) / 2**0.5
    model, inputs = case("mlp_relu").model, case("mlp_relu").inputs
    found = empirical_ntk(model, inputs, mode="pseudo", outputs=[0, 2], param_groups="parameter")
    for parameter, place in parameter_slices("mlp_relu").items():
        close(found[parameter], rows[:, place] @ rows[:, place].T)


@pytest.mark.parametrize("name", NETWORKS)
def test_projections_are_near_the_trace_kernel(name: str) -> None:
    rows = jacobian(name)
    exact = torch.einsum(EINSUMS["trace"], rows, rows)
    found = empirical_ntk(
        case(name).model, case(name).inputs, mode="projected", projections=200, seed=3
    )
    assert isinstance(found, KernelEstimate)
    assert found.kernel.shape == found.standard_error.shape == exact.shape
    assert float(found.standard_error.max()) > 0
    rounding = 1e-9 * float(exact.abs().max())  # where all directions agree
    assert bool(((found.kernel - exact).abs() < 5 * found.standard_error + rounding).all())


def test_projections_are_unbiased() -> None:
    """The mean over all 2^C sign vectors is exact, and each draw is one of them."""
    rows = jacobian("mlp_relu")
    exact = torch.einsum(EINSUMS["trace"], rows, rows)
    signs = torch.tensor(list(product([-1.0, 1.0], repeat=rows.shape[1])), dtype=rows.dtype)
    seen = torch.einsum("rc,ncp->rnp", signs, rows)
    close(torch.einsum("rnp,rmp->rnm", seen, seen).mean(0), exact)
    found = case("mlp_relu")
    draws = torch.stack(
        [
            empirical_ntk(found.model, found.inputs, mode="projected", projections=2, seed=s).kernel
            for s in range(200)
        ]
    )
    error = draws.std(0) / len(draws) ** 0.5
    rounding = 1e-9 * float(exact.abs().max())  # where all directions agree
    assert bool(((draws.mean(0) - exact).abs() < 4.5 * error + rounding).all())
    assert float(error.max()) > 1e-3 * float(exact.abs().max())


def test_standard_error_is_the_deviation_over_repetitions() -> None:
    found = case("gpt_tied")
    runs = [
        empirical_ntk(found.model, found.inputs, mode="projected", projections=20, seed=seed)
        for seed in range(60)
    ]
    deviation = torch.stack([run.kernel for run in runs]).std(0)
    claimed = torch.stack([run.standard_error for run in runs]).square().mean(0).sqrt()
    ratio = deviation / claimed
    assert 0.6 < float(ratio.min()) <= float(ratio.max()) < 1.6


def test_no_error_with_one_output() -> None:
    found = case("regression_of_one_number")
    exact = empirical_ntk(found.model, found.inputs, mode="trace")
    estimate = empirical_ntk(found.model, found.inputs, mode="projected", projections=2)
    close(estimate.kernel, exact)
    assert not bool(estimate.standard_error.any())


def test_directions_are_the_same_in_every_call() -> None:
    found = case("cnn")
    options: dict[str, Any] = {"mode": "projected", "projections": 4, "seed": 5}
    whole = empirical_ntk(found.model, found.inputs, **options)
    part = empirical_ntk(found.model, found.inputs[:2], found.inputs[2:], **options)
    close(part.kernel, whole.kernel[:2, 2:])
    close(part.standard_error, whole.standard_error[:2, 2:])


@pytest.mark.parametrize(
    ("options", "columns"),
    [
        ({"mode": "pseudo"}, 1),
        ({"mode": "projected", "projections": 2}, 2),
        ({"mode": "trace", "outputs": [1]}, 1),
        ({"mode": "full"}, 3),
    ],
)
def test_only_the_needed_columns_are_backpropagated(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], columns: int
) -> None:
    seen = []
    plain = AutogradBackend.factors

    def watched(self: AutogradBackend, located: Located, columns: Tensor, *args: Any) -> Any:
        seen.append(columns.shape[0])
        return plain(self, located, columns, *args)

    monkeypatch.setattr(AutogradBackend, "factors", watched)
    empirical_ntk(case("cnn").model, case("cnn").inputs, **options)
    assert seen == [columns]


def test_backpack_backend() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x = torch.randn(6, 4).double()
    for options in ({"mode": "pseudo"}, {"mode": "diagonal", "outputs": [2]}):
        ours = empirical_ntk(copy.deepcopy(model), x, **options)
        close(empirical_ntk(model, x, backend="backpack", **options), ours)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "sketch"}, "Unknown mode 'sketch'. Supported: full, trace"),
        ({"mode": "projected", "projections": 1}, "projections=1"),
        ({"outputs": []}, "at least one index"),
        ({"outputs": [1, 1]}, "at most once"),
        ({"outputs": [-1]}, "counted from 0"),
        ({"outputs": [3]}, "a sample has 3 outputs"),
    ],
)
def test_impossible_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        empirical_ntk(case("cnn").model, case("cnn").inputs, **options)
