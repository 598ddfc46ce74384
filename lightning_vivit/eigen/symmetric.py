"""Eigenvalues of symmetric matrices, and eigenpairs of the GGN from its Gram matrix."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_vivit.errors import OptionError, ProblemError
from lightning_vivit.machine.numbers import all_finite

_TRIANGLE = "U"  # which MKL reduces faster than the lower one
_SINGLE_SIZE = 512  # below, double precision costs next to nothing
_KRYLOV_SIZE = 256  # below, all eigenpairs cost less than the iteration's start
_BLOCK = 4  # vectors multiplied at once, which also finds so many copies of an eigenvalue
_CONVERGED = 5e-13  # residual, of the largest eigenvalue
_CONVERGED_SINGLE = 1e-9  # the same for a kernel in single precision, known to 1e-7
_STALLED = 1e-10  # below it a residual that no longer halves is rounding
_SMALL = 1e-8  # part of a vector that is left, of which some is rounding along the basis
_ROUNDING = 1e-14  # the same, of which all may be


def gram_eigenvalues(gram: Tensor, dtype: torch.dtype) -> Tensor:
    """All eigenvalues, ascending; they are the GGN's nonzero ones, padded with zeros.

    Args:
        gram: V^T V, [N, M, N, M] or [N*M, N*M].
        dtype: The dtype in which the kernel was computed. The eigenvalues of a large matrix are
            not computed with more precision than the matrix has.

    Returns:
        [N*M] ascending, in the dtype of `gram`.

    Raises:
        ProblemError: The matrix is not finite.
    """
    size = math.prod(gram.shape[: gram.ndim // 2])
    return symmetric_eigenvalues(_finite(gram).reshape(size, size), dtype)


def in_single_precision(size: int, dtype: torch.dtype) -> bool:
    """Whether `symmetric_eigenvalues` takes single precision.

    Args:
        size: Number of rows.
        dtype: The dtype in which the matrix was computed.
    """
    return size >= _SINGLE_SIZE and dtype == torch.float32


def symmetric_eigenvalues(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """All eigenvalues of a finite symmetric matrix [M, M], ascending, in its dtype.

    Args:
        matrix: The matrix.
        dtype: The dtype in which it was computed; float32 is used for a large one from that.

    Returns:
        [M].
    """
    if in_single_precision(matrix.shape[0], dtype):
        # A saturated loss leaves entries below single precision's range, where LAPACK gives NaN.
        size = torch.stack(torch.aminmax(matrix)).abs().max()
        size = size.clamp(min=torch.finfo(matrix.dtype).tiny)
        scaled = (matrix / size).to(dtype)
        return torch.linalg.eigvalsh(scaled, UPLO=_TRIANGLE).to(matrix.dtype) * size
    return torch.linalg.eigvalsh(matrix, UPLO=_TRIANGLE)


def gram_eigenpairs(
    gram: Tensor, k: int | None = None, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """The k largest eigenvalues with eigenvectors.

    Args:
        gram: V^T V, [N*M, N*M].
        k: How many; None for all.
        dtype: The dtype in which the kernel was computed: the pairs are as exact as that, in
            float64 to rounding.

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
    if k is not None and gram.device.type == "cpu" and size >= _KRYLOV_SIZE and 8 * k <= size:
        exact = dtype == torch.float64
        found = _block_krylov(gram.double(), k, _CONVERGED if exact else _CONVERGED_SINGLE)
        if found is not None:
            return found[0].to(gram), found[1].to(gram)
    values, vectors = torch.linalg.eigh(_finite(gram), UPLO=_TRIANGLE)
    first = 0 if k is None else size - k
    return values[first:], vectors[:, first:]


def _block_krylov(
    matrix: Tensor, k: int, converged: float = _CONVERGED
) -> tuple[Tensor, Tensor] | None:
    """The k largest eigenpairs of a symmetric float64 matrix.

    Rayleigh-Ritz on a block Krylov space (Saad, Numerical Methods for Large Eigenvalue Problems,
    2011, section 6.4) with full reorthogonalisation. ARPACK takes as long, but through scipy,
    whose idle BLAS threads wait in a loop and slow torch's down.

    Args:
        matrix: [M, M].
        k: How many.
        converged: Norms of the residuals that are small enough, of the largest eigenvalue.

    Returns:
        Values [k] ascending and vectors [M, k]; None where so many steps are needed that all
        eigenpairs cost less (nearly equal eigenvalues).

    Raises:
        ProblemError: The matrix is not finite.
    """
    size = matrix.shape[0]
    limit = max(size // 3, 8 * k) // _BLOCK * _BLOCK
    basis = matrix.new_empty(limit, size)  # of rows, which lie together
    projected = matrix.new_zeros(limit, limit)
    scale = 0.0  # largest entry of it
    draw = torch.Generator().manual_seed(0)
    new = torch.randn(size, _BLOCK, generator=draw, dtype=matrix.dtype)
    new = torch.linalg.qr(new).Q
    check, before = max(4 * k, 32), float("inf")  # at how many vectors to look for convergence
    for filled in range(_BLOCK, limit + 1, _BLOCK):
        older = filled - _BLOCK
        own, known = slice(older, filled), basis[:filled]
        basis[own] = new.T
        image = basis[own] @ matrix
        if older == 0:
            _finite(image)  # each entry of the matrix went into it
        inside = image @ known.T
        rest = torch.addmm(image, inside, known, alpha=-1)
        again = rest @ known.T
        rest = torch.addmm(rest, again, known, alpha=-1)
        inside += again
        projected[own, :filled] = inside
        projected[:older, own] = inside[:, :older].T
        new, triangle = torch.linalg.qr(rest.T)
        if filled >= check or filled == limit:
            check = int(1.2 * filled)
            values, vectors = torch.linalg.eigh(projected[:filled, :filled])
            top = values.abs().max().clamp(min=torch.finfo(values.dtype).tiny)
            residuals = torch.linalg.vector_norm((triangle / top) @ vectors[own, -k:], dim=0)
            worst = float(residuals.max())
            if worst <= converged or before / 2 < worst <= _STALLED:
                return values[-k:], known.T @ vectors[:, -k:]
            before = worst
        sizes = triangle.diagonal().abs()
        scale = max(scale, float(inside.abs().max()))
        if float(sizes.min()) <= _SMALL * scale:
            other = torch.randn(size, _BLOCK, generator=draw, dtype=matrix.dtype)
            new = torch.where(sizes <= _ROUNDING * scale, other, new)
            new = torch.linalg.qr(new - known.T @ (known @ new)).Q
    return None


def numerical_floor(eigenvalues: Tensor, dtype: torch.dtype) -> Tensor:
    """Eigenvalues up to this bound are zero but for rounding in the kernel.

    Args:
        eigenvalues: Ascending, the largest last.
        dtype: The dtype in which the kernel was computed.

    Returns:
        Scalar: the largest eigenvalue times 1e-12 for float64 kernels, 1e-6 otherwise.
    """
    return eigenvalues[-1].clamp(min=0.0) * (1e-12 if dtype == torch.float64 else 1e-6)


def _finite(matrix: Tensor) -> Tensor:
    if not all_finite(matrix):
        raise ProblemError(
            "The GGN's Gram matrix has entries that are not finite. The network's outputs or "
            "derivatives overflowed: look at the loss and the learning rate, or use more precision."
        )
    return matrix
