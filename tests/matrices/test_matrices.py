"""What a matrix says of itself, and what follows from it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_vivit import GGNSpectrumMonitor, OptionError, Problem, evaluate
from lightning_vivit.matrices import MATRICES, RowMatrix, find_matrix


def problem(dtype: torch.dtype | None = None) -> Problem:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
    inputs, targets = torch.randn(8, 5), torch.arange(8) % 3
    return Problem(model, nn.CrossEntropyLoss(), inputs, targets, dtype=dtype)


@pytest.mark.parametrize("name", MATRICES)
def test_converted_networks_have_the_same_eigenvalues(name):
    """The converted copy's own parameters are differentiated, not the original's."""
    own = evaluate(problem(), matrix=name, k=3, tol=1e-4)
    precise = evaluate(problem(torch.float64), matrix=name, k=3, tol=1e-4)
    values = precise.eigenvalues(k=3)
    assert float(values[0]) > 0
    torch.testing.assert_close(own.eigenvalues(k=3), values, rtol=1e-4, atol=0)


class SquaredOutputs(RowMatrix):
    """sum_n J_n^T J_n over N: the NTK as a matrix of the parameters."""

    name = "squared_outputs"
    title = "Jacobian's square"
    directions = "squared_outputs"

    def root(self, loss) -> Tensor:
        outputs = loss.gradient()
        return torch.eye(outputs.shape[1]).to(outputs).expand(len(outputs), -1, -1)


def test_a_matrix_of_ones_own():
    exact = evaluate(problem(torch.float64), matrix=SquaredOutputs(), kernel=True)
    values = exact.eigenvalues()
    kernel = exact.ntk().permute(0, 2, 1, 3).reshape(24, 24)
    torch.testing.assert_close(values, torch.linalg.eigvalsh(kernel) / 8)
    free = evaluate(
        problem(torch.float64), matrix=SquaredOutputs(), method="matrix_free", k=4, tol=1e-8
    )
    torch.testing.assert_close(free.eigenvalues(), values[-4:])
    found, known = free.directions(k=2), exact.directions(k=2)
    torch.testing.assert_close(found.lambdas, known.lambdas, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(found.gammas.abs(), known.gammas.abs(), rtol=1e-4, atol=1e-8)


def test_names():
    assert all(matrix.name == name for name, matrix in MATRICES.items())
    own = SquaredOutputs()
    assert find_matrix("hessian") is MATRICES["hessian"] and find_matrix(own) is own
    with pytest.raises(OptionError, match="matrix has to be one of 'ggn', 'hessian'"):
        evaluate(problem(), matrix="fisher")


def test_what_a_matrix_lacks_is_refused():
    hessian = evaluate(problem(), matrix="hessian", k=2)
    with pytest.raises(OptionError, match="eigenvectors of the Hessian are not supported"):
        hessian.directions()
    with pytest.raises(OptionError, match="no Gram matrix"):
        GGNSpectrumMonitor(matrix="hessian", method="gram")
    for options in ({"columns": "mc"}, {"method": "mc"}):
        with pytest.raises(OptionError, match="Monte-Carlo columns estimate the GGN"):
            evaluate(problem(), matrix="hessian", **options)
    with pytest.raises(OptionError, match="Monte-Carlo columns estimate the GGN"):
        GGNSpectrumMonitor(matrix="hessian", mc_samples=1)
    with pytest.raises(OptionError, match="is looked at by its Gram matrix"):
        evaluate(problem(), columns="mc", method="matrix_free")
    with pytest.raises(OptionError, match="is looked at by its Gram matrix"):
        GGNSpectrumMonitor(mc_samples=1, method="matrix_free")
