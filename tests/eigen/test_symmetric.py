"""Eigenvalues and leading eigenpairs of large Gram matrices with difficult spectra."""

from __future__ import annotations

import pytest
import torch

from lightning_vivit.eigen import symmetric as spectrum
from lightning_vivit.eigen.symmetric import gram_eigenpairs, gram_eigenvalues
from lightning_vivit.errors import ProblemError
from lightning_vivit.metrics.functional import kernel_eigenvalues

SIZE = 320
SPECTRA = {  # and for how many of k = 1, 5, 20 the block Krylov method ends
    "decaying": (0.9 ** torch.arange(SIZE), 3),
    "outliers": (torch.cat([torch.linspace(9, 5, 9), torch.linspace(1, 0, SIZE - 9)]), 2),
    "rank 3": (torch.cat([torch.tensor([3.0, 2, 1]), torch.zeros(SIZE - 3)]), 3),
    "copies": (torch.cat([torch.tensor([5.0] * 3 + [3] * 3), 0.5 ** torch.arange(SIZE - 6)]), 3),
    "many copies": (torch.cat([torch.full((9,), 3.0), torch.linspace(1, 0, SIZE - 9)]), 1),
    "equal": (torch.ones(SIZE), 3),
    "zero": (torch.zeros(SIZE), 3),
    "bulk": (torch.cat([torch.linspace(1, 0.7, 9), 0.024 * 0.97 ** torch.arange(SIZE - 9)]), 3),
    "flat": (torch.linspace(1, 2, SIZE), 0),
    "tiny": (1e-200 * 0.9 ** torch.arange(SIZE).double(), 3),
    "wide": (torch.logspace(0, -14, SIZE), 3),
}


@pytest.mark.parametrize("size", [1e-42, 1e-30, 1.0, 1e40])
def test_eigenvalues_scale_with_the_matrix(size: float) -> None:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(520, 20, dtype=torch.float64, generator=generator)
    expected = torch.linalg.eigvalsh(root.T @ root)  # the nonzero ones
    gram = root @ root.T * size
    wider = torch.full((52, 11, 52, 11), 1e99, dtype=torch.float64)  # as beside the gradients
    wider[:, :10, :, :10] = gram.reshape(52, 10, 52, 10)
    for layout in (gram, gram.reshape(52, 10, 52, 10), wider[:, :10, :, :10]):
        found = gram_eigenvalues(layout, torch.float32) / size
        torch.testing.assert_close(found[-20:], expected, rtol=1e-5, atol=0.0)


def test_zero_matrix() -> None:
    assert not gram_eigenvalues(torch.zeros(520, 520, dtype=torch.float64), torch.float32).any()


@pytest.mark.parametrize("size", [1e-36, 1.0, 1e30])
def test_eigenvalues_of_a_large_ntk(size: float) -> None:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(520, 20, dtype=torch.float64, generator=generator)
    expected = torch.linalg.eigvalsh(root.T @ root)
    kernel = (root @ root.T * size).float().reshape(52, 10, 52, 10).transpose(1, 2)
    found = kernel_eigenvalues(kernel)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found[-20:] / size, expected, rtol=1e-5, atol=0.0)
    torch.testing.assert_close(found[:-20] / size, torch.zeros(500).double(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("place", [(0, 0), (3, 517)])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_large_kernels_that_are_not_finite_are_refused(
    place: tuple[int, int], value: float
) -> None:
    kernel = torch.eye(520)
    kernel[place] = value
    with pytest.raises(ProblemError, match="Gram matrix has entries that are not finite"):
        gram_eigenvalues(kernel.double(), torch.float32)
    for k in (2, 500, None):  # some by block Krylov, all
        with pytest.raises(ProblemError, match="Gram matrix has entries that are not finite"):
            gram_eigenpairs(kernel.double(), k)


def test_a_diagonal_that_vanished_is_not_divided_by() -> None:
    kernel = torch.zeros(520, 520, dtype=torch.float64)
    kernel[0, 1] = kernel[1, 0] = 1e-200
    found = gram_eigenvalues(kernel, torch.float32)
    assert float(found[-1]) == pytest.approx(1e-200)
    assert float(found[0]) == pytest.approx(-1e-200)


@pytest.mark.parametrize("name", SPECTRA)
def test_leading_pairs_of_known_spectra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values, ends = SPECTRA[name][0].double(), SPECTRA[name][1]
    generator = torch.Generator().manual_seed(1)
    turn = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=generator).double()).Q
    gram = turn * values @ turn.T
    gram = (gram + gram.T) / 2
    scale = float(values.max())
    found_at_once = []
    search = spectrum._block_krylov

    def watched(matrix: torch.Tensor, k: int, converged: float) -> object:
        found = search(matrix, k, converged)
        found_at_once.append(found is not None)
        return found

    monkeypatch.setattr(spectrum, "_block_krylov", watched)
    for k in (1, 5, 20):
        found, vectors = gram_eigenpairs(gram, k)
        expected = values.sort().values[-k:]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-13 * scale)
        apart = torch.linalg.vector_norm((gram @ vectors - vectors * found) / (scale or 1), dim=0)
        assert float(apart.max()) < 1e-12
        inner = vectors.T @ vectors
        torch.testing.assert_close(inner, torch.eye(k).double(), rtol=0, atol=1e-13)
    assert sum(found_at_once) == ends and len(found_at_once) == 3


@pytest.mark.parametrize("name", SPECTRA)
def test_leading_pairs_of_a_kernel_in_single_precision(name: str) -> None:
    values = SPECTRA[name][0].double()
    generator = torch.Generator().manual_seed(1)
    turn = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=generator).double()).Q
    gram = turn * values @ turn.T
    scale = float(values.max())
    for k in (1, 5, 20):
        found, vectors = gram_eigenpairs(gram, k, torch.float32)
        torch.testing.assert_close(found, values.sort().values[-k:], rtol=0, atol=1e-9 * scale)
        apart = torch.linalg.vector_norm((gram @ vectors - vectors * found) / (scale or 1), dim=0)
        assert float(apart.max()) < 1e-8
        torch.testing.assert_close(vectors.T @ vectors, torch.eye(k).double(), rtol=0, atol=1e-13)


def test_residuals_that_rounding_keeps_up_end_the_search() -> None:
    values = SPECTRA["outliers"][0].double()
    generator = torch.Generator().manual_seed(1)
    turn = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=generator).double()).Q
    found = spectrum._block_krylov(turn * values @ turn.T, 9, 0.0)  # never reached
    assert found is not None
    torch.testing.assert_close(found[0], values[:9].flip(0), rtol=0, atol=1e-12)


def test_eigenvalues_of_a_large_kernel_in_single_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(520, 600, generator=generator) * torch.logspace(0, -3, 600)
    kernel = rows @ rows.T
    expected = torch.linalg.eigvalsh(kernel.double())
    found = kernel_eigenvalues(kernel)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6 * float(expected[-1]))
    exact = kernel_eigenvalues(kernel.double())
    torch.testing.assert_close(exact, expected, rtol=1e-10, atol=1e-12 * float(expected[-1]))
