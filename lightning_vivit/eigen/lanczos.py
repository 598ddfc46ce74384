"""Leading eigenpairs of a symmetric matrix that is known by its products only.

Rayleigh-Ritz on a growing orthonormal basis B: each round multiplies the residual of the worst
unconverged Ritz pair (Davidson's method without a preconditioner; Saad, Numerical Methods for
Large Eigenvalue Problems, 2011, section 8.4). From one starting vector all residuals are parallel
and this is the Lanczos method with full reorthogonalisation; from several it is a block Krylov
method that spends products only where they are needed. The part of A B^T outside the basis is kept
as a few orthonormal rows with coefficients (a Krylov decomposition: Stewart, SIAM J. Matrix Anal.
Appl. 23, 2002), so no product is kept, and a residual costs no pass over vectors. A basis that has
grown too large is restarted from its leading Ritz vectors (thick restart: Wu and Simon, SIAM J.
Matrix Anal. Appl. 22, 2000).

A small residual says that a pair is one, not that no larger one was missed. Two eigenvalues that
are closer than the residual look like one, whose vector is a mixture; so a search without a start
goes on to residuals below the tolerance (`_target`), by which they part. Of a multiple eigenvalue
a Krylov space from one vector has one copy: after convergence a random vector is iterated in the
complement, and the search goes on if that changes the result. That is left out where it could not:
where the eigenvalues are so close to those of the complement that a few steps do not tell them
apart (`_visible`).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from lightning_vivit.eigen.krylov import Eigenpairs, Halves, Ritz, Search
from lightning_vivit.errors import OptionError

WHICH = ("largest", "magnitude")
_FINEST = 5e-4  # residual below which eigenvalues that look like one are too rare to search for
_FAR = 5.0  # tolerances that two products hardly ever bridge
_PATIENCE = 10  # products spent on it
_LUCK = 10.0  # times its expectation that a random vector may have along an eigenvector


def _target(tol: float) -> float:
    """Residual at which a search from a random vector stops.

    On 30 spectra of a small GPT and of a classifier with 1000 classes (k = 3 to 15, 8 searches
    each) 2 to 12% of those that stopped at 1e-2 missed an eigenvalue of the k = 10 leading ones;
    1.7% at 1e-3 and none at 5e-4, which costs 3 to 5 products more than 1e-2.
    """
    return min(tol, max(tol / 10, _FINEST))


def _visible(size: int, steps: int) -> float:
    """How many times the next eigenvalue one must be, for a few steps from a random vector.

    The vector has a share of 1 / size along it, ten times that by chance. A Krylov space of that
    many steps multiplies the share by T(1 + 2 g)^2 at most, T the Chebyshev polynomial of this
    degree and 1 + g the ratio wanted (Saad, 2011, section 6.6); it is seen once that is 1.
    """
    growth = math.sqrt(max(1.0, size / _LUCK))
    return 0.5 + 0.5 * math.cosh(math.acosh(growth) / steps)


def leading_eigenpairs(
    multiply: Callable[[Tensor], Tensor] | None,
    size: int,
    k: int,
    *,
    tol: float = 1e-3,
    which: str = "largest",
    start: Tensor | None = None,
    max_products: int | None = None,
    max_basis: int | None = None,
    block: int = 1,
    verify: int = 4,
    halves: Halves | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    generator: torch.Generator | None = None,
) -> Eigenpairs:
    """The k leading eigenpairs of a symmetric matrix.

    Args:
        multiply: [b, P] -> [b, P], the products of b vectors; not used if there are `halves`.
        size: P.
        k: How many.
        tol: Largest ||A e - mu e|| / |mu| of a converged pair. The eigenvalue's own relative error
            is of the order of its square where the eigenvalue is separated.
        which: ``largest`` (algebraic) or ``magnitude``.
        start: [s, P], vectors to start from; None for a random one.
        max_products: Stop after so many; None for 20 k + 100.
        max_basis: Vectors in memory; None for 3 k + 20.
        block: Vectors multiplied at once.
        verify: Steps of the final search for multiple eigenvalues, if there was no `start`.
        halves: For a matrix V^T V of this size: from [b, size] V^T V u, and V u in any form
            [b, width] that is linear in u. The result then has that form of the vectors of V V^T,
            with the norms that V gives to orthonormal u.
        dtype: Of the vectors.
        device: Of the vectors.
        generator: Source of random vectors, on the CPU; None for a fixed seed.

    Returns:
        The pairs, with the products spent and whether all converged.

    Raises:
        OptionError: An option has an impossible value.
        ProblemError: A product is not finite.
    """
    _check_options(which, k, size, tol)
    limit = 20 * k + 100 if max_products is None else max_products
    room = max(search_vectors(k) if max_basis is None else max_basis, 2 * k + block + 2)
    draws = generator or torch.Generator().manual_seed(0)

    def draw() -> Tensor:
        return torch.randn(1, size, generator=draws).to(device, dtype)

    search = Search(halves or _Whole(multiply), size, min(room, size), which, dtype, device, draw)
    search.extend(None if start is None else start.to(device, dtype))
    checks, target = (verify, _target(tol)) if start is None else (0, tol)
    patience = limit
    while True:
        found = search.ritz(k)
        largest = max(found.residuals)
        done = found.count >= min(k, size) and largest <= tol
        if done and patience == limit:
            patience = min(limit, search.products + _PATIENCE)
        fine = done and (largest <= target or search.products >= patience)
        if fine and checks > 0:
            lead = float(found.values.abs().max())
            checks = checks if lead > _visible(size, checks) * found.following else 0
        if fine and (checks == 0 or search.filled == size):
            break
        if search.products >= limit or search.filled == size:
            break
        if fine:
            before = found.values
            search.probe(checks, k)
            after = search.ritz(k)
            checks = 0
            if float((after.values - before).abs().max()) > tol * float(before.abs().max()):
                verify *= 2  # something was missed, so more may be
                checks = verify
            continue
        if not _grow(search, found, k, block, tol, target if done else tol, limit):
            break
    return search.result(found, done)


def _check_options(which: str, k: object, size: int, tol: float) -> None:
    if which not in WHICH:
        raise OptionError(f"Unknown eigenvalues {which!r}. Supported: {', '.join(WHICH)}.")
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= size:
        raise OptionError(f"k is {k!r}; it must be an integer from 1 to {size}, the parameters.")
    if not tol > 0:
        raise OptionError(f"tol is {tol!r}; it must be a positive number.")


def _grow(
    search: Search, found: Ritz, k: int, block: int, tol: float, bound: float, limit: int
) -> bool:
    """Add directions in which residuals are above a bound; False where there are none left."""
    search.restart_if_full(k, block)
    order = sorted(range(found.count), key=found.residuals.__getitem__, reverse=True)
    worst = [place for place in order[:block] if found.residuals[place] > bound]
    grown = search.expand(found.edges[:, worst]) if worst else search.extend()
    if grown == 0:
        return False
    far = found.count < k or max(found.residuals) > _FAR * tol
    steps = max(1, k - search.filled) if far else 0  # before k there is no other direction
    while steps > 0 and search.rank == 1 and search.products < limit:
        search.restart_if_full(k, block)
        search.expand(np.ones((1, 1)))  # there is one direction to go
        steps -= 1
    return True


class _Whole:
    """Products that are not divided."""

    width = 0

    def __init__(self, multiply: Callable[[Tensor], Tensor] | None) -> None:
        assert multiply is not None
        self._multiply = multiply

    def __call__(self, columns: Tensor, forms: Tensor) -> Tensor:
        return self._multiply(columns)


def search_vectors(k: int) -> int:
    """How many vectors of the parameters a search for k pairs keeps."""
    return 3 * k + 20


__all__ = ["WHICH", "Eigenpairs", "leading_eigenpairs", "search_vectors"]
