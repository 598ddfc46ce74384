"""Eigenvalues of Gram matrices near the end of single precision's range."""

from __future__ import annotations

import pytest
import torch

from lightning_vivit.spectrum import gram_eigenvalues


@pytest.mark.parametrize("size", [1e-42, 1e-30, 1.0, 1e40])
def test_eigenvalues_scale_with_the_matrix(size: float) -> None:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(520, 20, dtype=torch.float64, generator=generator)
    expected = torch.linalg.eigvalsh(root.T @ root)  # the nonzero ones
    found = gram_eigenvalues(root @ root.T * size, torch.float32) / size
    torch.testing.assert_close(found[-20:], expected, rtol=1e-5, atol=0.0)


def test_zero_matrix() -> None:
    assert not gram_eigenvalues(torch.zeros(520, 520, dtype=torch.float64), torch.float32).any()
