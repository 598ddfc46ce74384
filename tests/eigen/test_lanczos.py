"""The eigensolver and the trace estimate on matrices whose spectrum is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_vivit import OptionError
from lightning_vivit.eigen import krylov
from lightning_vivit.eigen.lanczos import leading_eigenpairs
from lightning_vivit.eigen.start import Start, starting_block
from lightning_vivit.eigen.trace import estimate_trace

SIZE = 300
SPECTRA = {
    "decaying": torch.logspace(1, -5, SIZE),
    "outliers": torch.cat([torch.linspace(10, 2, 9), torch.linspace(1, 0, SIZE - 9)]),
    "multiple": torch.cat(
        [torch.tensor([5.0, 5, 5, 3, 3, 1, 1]), torch.linspace(0.9, 0, SIZE - 7)]
    ),
    "low rank": torch.cat([torch.tensor([5.0, 3]), torch.zeros(SIZE - 2)]),
    "zero": torch.zeros(SIZE),
    "indefinite": torch.linspace(-5, 3, SIZE),
}


def matrix(spectrum: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=generator).double()).Q
    found = turn * spectrum.double() @ turn.T
    return (found + found.T) / 2


class Counted:
    def __init__(self, name: str) -> None:
        self.matrix = matrix(SPECTRA[name])
        self.count = 0

    def __call__(self, vectors: Tensor) -> Tensor:
        self.count += len(vectors)
        return vectors @ self.matrix


@pytest.mark.parametrize("k", [1, 4, 8])
@pytest.mark.parametrize("which", ["largest", "magnitude"])
@pytest.mark.parametrize("name", SPECTRA)
def test_known_spectra(name, which, k):
    multiply = Counted(name)
    found = leading_eigenpairs(
        multiply, SIZE, k, tol=1e-6, which=which, dtype=torch.float64, max_products=2000
    )
    spectrum = SPECTRA[name].double()
    order = (spectrum.abs() if which == "magnitude" else spectrum).argsort()
    expected = spectrum[order[-k:]]
    torch.testing.assert_close(found.values, expected, rtol=1e-8, atol=1e-9)
    assert found.converged and found.products == multiply.count
    inner = found.vectors @ found.vectors.T
    torch.testing.assert_close(inner, torch.eye(k).double(), rtol=0, atol=1e-10)
    true = (found.vectors @ multiply.matrix - found.values[:, None] * found.vectors).norm(dim=1)
    assert bool((true <= 1e-6 * found.values.abs() + 1e-10).all())


def test_copies_are_searched_where_they_would_be_seen():
    """The search in the complement costs its products where an eigenvalue stands out, else none."""
    size = 4000
    bulk = torch.linspace(1, 0, size - 3)
    spent = {}
    for name, lead in {"stands out": 3.0, "close": 1.1}.items():
        spectrum = torch.cat([torch.tensor([lead, 1.05 * lead, 1.1 * lead]), bulk])
        for verify in (0, 4):
            found = leading_eigenpairs(lambda v: v * spectrum, size, 3, tol=1e-3, verify=verify)  # noqa: B023
            torch.testing.assert_close(found.values, spectrum[:3].double(), rtol=1e-5, atol=0)
            spent[name, verify] = found.products
    assert spent["stands out", 4] == spent["stands out", 0] + 4
    assert spent["close", 4] == spent["close", 0]
    doubled = torch.cat([torch.tensor([2.0, 3.0, 3.0]), bulk])  # a copy that has to be found
    found = leading_eigenpairs(lambda v: v * doubled, size, 3, tol=1e-3)
    torch.testing.assert_close(found.values, doubled[:3].double(), rtol=1e-5, atol=0)


def test_all_eigenvalues_of_a_small_matrix():
    spectrum = torch.tensor([3.0, 2.0, 2.0, 0.0, -1.0])
    turn = torch.linalg.qr(torch.randn(5, 5).double()).Q
    small = turn * spectrum.double() @ turn.T
    found = leading_eigenpairs(lambda v: v @ small, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(found.values, spectrum.sort().values.double())


def test_a_small_basis_is_restarted():
    multiply = Counted("decaying")
    found = leading_eigenpairs(
        multiply, SIZE, 3, tol=1e-6, dtype=torch.float64, max_basis=12, max_products=1000
    )
    assert found.converged and found.basis.shape[0] <= 12
    torch.testing.assert_close(found.values, SPECTRA["decaying"][:3].flip(0).double())


class Halved:
    """V^T V of a matrix V [P, size], in two steps."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix, self.width = matrix, matrix.shape[0]

    def __call__(self, columns: Tensor, forms: Tensor) -> Tensor:
        for form, column in zip(forms, columns, strict=True):
            form.copy_(self.matrix @ column)
        return columns @ self.matrix.T @ self.matrix


@pytest.mark.parametrize("room", [12, None])
def test_first_halves(room, monkeypatch):
    """The vectors of V V^T, with and without restarts."""
    torch.manual_seed(0)
    matrix = torch.randn(90, 90).double() * torch.logspace(0.5, -2.5, 90).double()
    halves = Halved(matrix.T[:, :80].contiguous())
    monkeypatch.setattr(krylov, "_COLUMNS", 37)
    found = leading_eigenpairs(
        None, 80, 3, tol=1e-7, halves=halves, dtype=torch.float64, max_basis=room, block=2
    )
    whole = halves.matrix @ halves.matrix.T
    torch.testing.assert_close(found.values, torch.linalg.eigvalsh(whole)[-3:])
    vectors = found.vectors / found.vectors.norm(dim=1, keepdim=True)
    torch.testing.assert_close(vectors @ vectors.T, torch.eye(3).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(vectors @ whole, found.values[:, None] * vectors, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["flat", "decaying", "outliers", "low rank"])
def test_the_basis_stays_orthonormal(name, dtype):
    size = 3000
    spectrum = {
        "flat": torch.linspace(0, 1, size),
        "decaying": torch.logspace(-6, 0, size),
        "outliers": torch.cat([torch.linspace(0, 1, size - 5), torch.logspace(1, 2, 5)]),
        "low rank": torch.cat([torch.zeros(size - 30), torch.linspace(0.1, 1, 30)]),
    }[name].to(dtype)
    turn = torch.linalg.qr(torch.randn(size, 30).to(dtype)).Q  # a few reflections mix all entries

    def multiply(vectors: Tensor) -> Tensor:
        mixed = vectors - 2 * (vectors @ turn) @ turn.T
        mixed = mixed * spectrum
        return mixed - 2 * (mixed @ turn) @ turn.T

    found = leading_eigenpairs(
        multiply, size, 4, tol=1e-5, dtype=dtype, max_basis=120, max_products=100, verify=0
    )
    eps = torch.finfo(dtype).eps
    products = found.basis @ found.basis.T - torch.eye(found.basis.shape[0], dtype=dtype)
    assert float(products.abs().max()) <= 0.1 * eps**0.5
    if found.converged:
        expected = spectrum.double()[-4:]
        rtol = 1e-5 if dtype == torch.float32 else 1e-9
        torch.testing.assert_close(found.values, expected, rtol=rtol, atol=0)


def test_single_precision_reaches_its_tolerance():
    """Dot products of many float32 numbers must not limit the residual."""
    size = 1 << 18
    diagonal = torch.cat([torch.linspace(10, 2, 9), torch.linspace(1, 0, size - 9)])
    found = leading_eigenpairs(lambda v: v * diagonal, size, 2, tol=2e-5, max_products=40)
    assert found.converged
    torch.testing.assert_close(found.values, torch.tensor([9.0, 10.0]).double(), rtol=1e-5, atol=0)


def test_too_few_products_are_reported():
    found = leading_eigenpairs(Counted("indefinite"), SIZE, 4, dtype=torch.float64, max_products=9)
    assert not found.converged and found.products == 9
    assert float(found.residuals.max()) > 1e-3


def test_a_start_at_the_solution_needs_few_products():
    multiply = Counted("multiple")
    cold = leading_eigenpairs(multiply, SIZE, 5, tol=1e-4, dtype=torch.float64)
    block = starting_block(Start(cold.values, cold.vectors), 1e-4)
    assert block.shape[0] == 3  # the largest number of equal eigenvalues
    warm = leading_eigenpairs(multiply, SIZE, 5, tol=1e-3, start=block, dtype=torch.float64)
    assert warm.products <= 8 < cold.products
    torch.testing.assert_close(warm.values, cold.values, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"k": 0}, "k is 0"), ({"k": SIZE + 1}, "k is"), ({"tol": 0.0}, "tol"), ({"which": "x"}, "x")],
)
def test_impossible_options(options, message):
    with pytest.raises(OptionError, match=message):
        leading_eigenpairs(Counted("zero"), SIZE, **{"k": 1, **options})


@pytest.mark.parametrize("name", ["decaying", "outliers", "indefinite"])
def test_trace_within_its_error_estimate(name):
    multiply = Counted(name)
    pairs = leading_eigenpairs(multiply, SIZE, 3, dtype=torch.float64, tol=1e-2)
    exact = float(SPECTRA[name].double().sum())
    scores, errors = [], []
    for seed in range(60):
        found = estimate_trace(
            lambda v: (multiply(v) * v).sum(1),
            pairs.basis,
            pairs.captured,
            12,
            torch.Generator().manual_seed(seed),
        )
        scores.append((found.value - exact) / found.error)
        errors.append(found.error)
    scores = torch.tensor(scores)
    assert float((scores.abs() < 2.2).double().mean()) > 0.85  # 95% of Student's t, 11 degrees
    assert abs(float(scores.mean())) < 0.5  # 60 draws: the mean has a deviation of 0.14
    plain = [
        estimate_trace(
            lambda v: (multiply(v) * v).sum(1),
            pairs.basis[:0],
            0.0,
            12,
            torch.Generator().manual_seed(seed),
        ).error
        for seed in range(20)
    ]
    if name == "decaying":  # what the basis holds is exact
        assert sum(errors) / len(errors) < 0.8 * sum(plain) / len(plain)


def test_trace_on_a_whole_basis_is_exact():
    found = estimate_trace(lambda v: v.sum(1), torch.eye(4), 7.0, 3)
    assert (found.value, found.error) == (7.0, 0.0)
    with pytest.raises(OptionError, match="integer >= 2"):
        estimate_trace(lambda v: v.sum(1), torch.eye(4), 7.0, 1)
