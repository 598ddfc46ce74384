"""Eigenvalues and eigenvectors of the GGN from its Gram matrix."""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse.linalg import ArpackError, eigsh
from torch import Tensor

from lightning_vivit.errors import OptionError, ProblemError

_SINGLE_SIZE = 512  # below, double precision costs next to nothing
_LANCZOS_SIZE = 256  # below, all eigenpairs cost less than the iteration's start


def gram_eigenvalues(gram: Tensor, dtype: torch.dtype) -> Tensor:
    """All eigenvalues, ascending; they are the GGN's nonzero ones, padded with zeros.

    Args:
        gram: V^T V, [N*M, N*M].
        dtype: The dtype in which the kernel was computed. The eigenvalues of a large matrix are
            not computed with more precision than the matrix has.

    Returns:
        [N*M] ascending, in the dtype of `gram`.

    Raises:
        ProblemError: The matrix is not finite.
    """
    _finite(gram)
    if gram.shape[0] >= _SINGLE_SIZE and dtype == torch.float32:
        # A saturated loss leaves entries below single precision's range, where LAPACK gives NaN.
        size = gram.abs().max().clamp(min=torch.finfo(gram.dtype).tiny)
        return torch.linalg.eigvalsh((gram / size).to(dtype)).to(gram.dtype) * size
    return torch.linalg.eigvalsh(gram)


def gram_eigenpairs(gram: Tensor, k: int | None = None) -> tuple[Tensor, Tensor]:
    """The k largest eigenvalues with eigenvectors.

    Args:
        gram: V^T V, [N*M, N*M].
        k: How many; None for all.

    Returns:
        Eigenvalues [K] ascending and eigenvectors [N*M, K].

    Raises:
        OptionError: k is not between 1 and N*M.
        ProblemError: The matrix is not finite.
    """
    size = gram.shape[0]
    if k is not None and not 1 <= k <= size:
        raise OptionError(
            f"Got k={k} directions, but the GGN of this batch has rank at most {size} (samples "
            f"times columns). Choose 1 <= k <= {size}, or more samples."
        )
    _finite(gram)
    if k is not None and gram.device.type == "cpu" and size >= _LANCZOS_SIZE and 8 * k <= size:
        try:
            return _lanczos(gram, k)
        except ArpackError:  # no convergence: nearly equal eigenvalues
            pass
    values, vectors = torch.linalg.eigh(gram)
    first = 0 if k is None else size - k
    return values[first:], vectors[:, first:]


def _lanczos(gram: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Leading eigenpairs of a large matrix in memory, to rounding, by ARPACK (scipy)."""
    matrix = gram.double().numpy()
    start = np.random.default_rng(0).standard_normal(matrix.shape[0])
    values, vectors = eigsh(matrix, k=k, which="LA", v0=start, tol=0.0)
    order = np.argsort(values)
    return (
        torch.from_numpy(values[order]).to(gram),
        torch.from_numpy(np.ascontiguousarray(vectors[:, order])).to(gram),
    )


def numerical_floor(eigenvalues: Tensor, dtype: torch.dtype) -> Tensor:
    """Eigenvalues up to this bound are zero but for rounding in the kernel.

    Args:
        eigenvalues: Ascending, the largest last.
        dtype: The dtype in which the kernel was computed.

    Returns:
        Scalar: the largest eigenvalue times 1e-12 for float64 kernels, 1e-6 otherwise.
    """
    return eigenvalues[-1].clamp(min=0.0) * (1e-12 if dtype == torch.float64 else 1e-6)


def _finite(gram: Tensor) -> Tensor:
    if not bool(torch.isfinite(gram).all()):
        raise ProblemError(
            "The GGN's Gram matrix has entries that are not finite. The network's outputs or "
            "derivatives overflowed: look at the loss and the learning rate, or use more "
            "precision."
        )
    return gram
