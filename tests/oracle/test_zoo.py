"""Kernel, spectrum and directions of unusual networks against explicit Jacobians."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from oracle.linearised import Linearised, zoo_jacobian
from zoo import ZOO, build
from zoo.base import C, N

from lightning_vivit import Problem, empirical_ntk, evaluate

TARGETS = torch.tensor([0, 2, 1, 2, 0])[:N] % C


@pytest.mark.parametrize("name", ZOO)
def test_network(name: str) -> None:
    model, inputs = build(name)
    rows = zoo_jacobian(name)
    kernel = torch.einsum("ncp,mdp->nmcd", rows, rows)
    scale = kernel.abs().max()
    torch.testing.assert_close(empirical_ntk(model, inputs) / scale, kernel / scale)
    outputs = model(*inputs)
    targets = TARGETS if outputs.ndim == 2 else torch.randint(0, outputs.shape[1], (N,))
    if outputs.shape[1:] != (C,):
        return
    expected = Linearised(outputs, rows, F.cross_entropy, targets)
    found = evaluate(Problem(model, F.cross_entropy, inputs, targets))
    values, top = found.eigenvalues(), expected.values
    count = min(len(values), len(top))
    torch.testing.assert_close(values[-count:] / top[-1], top[-count:] / top[-1])
    k = expected.separated()
    if k == 0:
        return
    gammas, lambdas = expected.derivatives(expected.top(k))
    directions = found.directions(k=k)
    gammas, lambdas = N * gammas, N * lambdas  # those of l_n, not of their mean
    largest = gammas.abs().max()
    torch.testing.assert_close(
        directions.gammas.abs() / largest, gammas.abs() / largest, rtol=1e-6, atol=1e-7
    )
    largest = lambdas.abs().max()
    torch.testing.assert_close(
        directions.lambdas / largest, lambdas / largest, rtol=1e-6, atol=1e-7
    )
