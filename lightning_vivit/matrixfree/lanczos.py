"""Leading eigenpairs of a symmetric matrix that is known by its products only.

Rayleigh-Ritz on a growing orthonormal basis that is kept together with its products: each round
multiplies the residuals of the worst unconverged Ritz pairs (Davidson's method without a
preconditioner; Saad, Numerical Methods for Large Eigenvalue Problems, 2011, section 8.4). From one
starting vector all residuals are parallel and this is the Lanczos method with full
reorthogonalisation; from a good starting subspace, such as the eigenvectors of the previous
monitored step, it is a block Krylov method that spends products only where they are needed. A
basis that has grown too large is restarted from its leading Ritz vectors (thick restart: Wu and
Simon, SIAM J. Matrix Anal. Appl. 22, 2000).

Every residual is computed from the stored products, not from a recurrence. A small residual says
that a pair is one, not that no larger one was missed: a Krylov space from one vector has one copy
of a multiple eigenvalue. So after convergence a random vector is iterated a few times in the
complement, and the search goes on if that changes the result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_vivit.errors import OptionError, ProblemError

WHICH = ("largest", "magnitude")
_CHUNK = 1 << 13  # entries of a vector that are summed in its own dtype


@dataclass(frozen=True)
class Eigenpairs:
    """The result of a search.

    Attributes:
        values: [k] ascending (for ``magnitude``: ascending in magnitude), float64.
        vectors: [k, P], orthonormal rows.
        residuals: [k], ||A e - mu e|| / |mu|; for values below rounding relative to that bound.
        products: Matrix-vector products that were spent.
        converged: Whether all residuals are within the tolerance.
        basis: [m, P], the orthonormal basis of the last round, which contains the vectors.
        captured: Trace of the matrix on the basis.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    products: int
    converged: bool
    basis: Tensor
    captured: float


def leading_eigenpairs(
    multiply: Callable[[Tensor], Tensor],
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
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    generator: torch.Generator | None = None,
) -> Eigenpairs:
    """The k leading eigenpairs of a symmetric matrix.

    Args:
        multiply: [b, P] -> [b, P], the products of b vectors.
        size: P.
        k: How many.
        tol: Largest ||A e - mu e|| / |mu| of a converged pair. The eigenvalue's own relative error
            is of the order of its square where the eigenvalue is separated.
        which: ``largest`` (algebraic) or ``magnitude``.
        start: [s, P], vectors to start from; None for a random one.
        max_products: Stop after so many; None for 20 k + 100.
        max_basis: Vectors in memory, each with its product; None for 3 k + 20.
        block: Vectors multiplied at once.
        verify: Steps of the final search for missed eigenvalues, if there was no `start`.
        dtype: Of the vectors.
        device: Of the vectors.
        generator: Source of random vectors, on the CPU; None for a fixed seed.

    Returns:
        The pairs, with the products spent and whether all converged.

    Raises:
        OptionError: An option has an impossible value.
        ProblemError: A product is not finite.
    """
    if which not in WHICH:
        raise OptionError(f"Unknown eigenvalues {which!r}. Supported: {', '.join(WHICH)}.")
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= size:
        raise OptionError(f"k is {k!r}; it must be an integer from 1 to {size}, the parameters.")
    if not tol > 0:
        raise OptionError(f"tol is {tol!r}; it must be a positive number.")
    limit = 20 * k + 100 if max_products is None else max_products
    room = max(search_vectors(k) // 2 if max_basis is None else max_basis, 2 * k + block + 2)
    random = generator or torch.Generator().manual_seed(0)
    search = _Search(multiply, size, min(room, size), which, dtype, device, random)
    first = search.random() if start is None else start.to(device, dtype)
    search.extend(first)
    checks = verify if start is None else 0
    while True:
        found = search.ritz(k)
        done = found.count >= min(k, size) and bool((found.residuals <= tol).all())
        if done and (checks == 0 or search.filled == size):
            break
        if search.products >= limit or search.filled == size:
            break
        if done:
            before = found.values
            search.probe(checks, k)
            after = search.ritz(k)
            checks = 0
            if float((after.values - before).abs().max()) > tol * float(before.abs().max()):
                checks = verify  # something was missed
            continue
        search.restart_if_full(k, block)
        worst = found.residuals.argsort(descending=True)[:block]
        worst = worst[found.residuals[worst] > tol]
        search.extend(found.directions[worst] if worst.numel() else search.random())
    return search.result(found, done)


@dataclass(frozen=True)
class _Ritz:
    """Ritz pairs of the wanted end of the spectrum, with their residual vectors."""

    values: Tensor  # [k]
    coefficients: Tensor  # [m, k]
    residuals: Tensor  # [k], relative
    directions: Tensor  # [k, P], residual vectors

    @property
    def count(self) -> int:
        return self.values.numel()


def search_vectors(k: int) -> int:
    """How many vectors a search for k pairs keeps: its basis, and the products with it."""
    return 2 * (3 * k + 20)


class _Search:
    """A basis, its products, and the matrix projected on it."""

    def __init__(
        self,
        multiply: Callable[[Tensor], Tensor],
        size: int,
        room: int,
        which: str,
        dtype: torch.dtype,
        device: torch.device | str,
        generator: torch.Generator,
    ) -> None:
        self._multiply, self._which, self._generator = multiply, which, generator
        self._basis = torch.empty(room, size, dtype=dtype, device=device)
        self._images = torch.empty_like(self._basis)
        self._projected = torch.zeros(room, room, dtype=torch.float64, device=device)
        self._eps = torch.finfo(dtype).eps
        self.filled = 0
        self.products = 0

    def random(self) -> Tensor:
        """A random vector, [1, P]."""
        draw = torch.randn(1, self._basis.shape[1], generator=self._generator)
        return draw.to(self._basis)

    def extend(self, vectors: Tensor) -> int:
        """Orthonormalise vectors against the basis, multiply and append them.

        Returns:
            How many were independent of the basis. If none was, a random vector is taken.
        """
        old = self.filled
        room = self._basis.shape[0] - old
        new = self._orthonormal(vectors)[:room]
        if new.shape[0] == 0:
            new = self._orthonormal(self.random())[:room]
        count = new.shape[0]
        if count == 0:
            return 0
        images = self._multiply(new)
        self.products += count
        if not bool(images.isfinite().all()):
            raise ProblemError(
                "A curvature-vector product is not finite: the network's derivatives overflowed. "
                "Look at the loss and the learning rate, or use more precision."
            )
        self._basis[old : old + count] = new
        self._images[old : old + count] = images
        self.filled = old + count
        inner = inner_products(self._basis[: self.filled], images)  # [m, count]
        self._projected[: self.filled, old : self.filled] = inner
        self._projected[old : self.filled, :old] = inner[:old].T
        own = inner[old:]
        self._projected[old : self.filled, old : self.filled] = (own + own.T) / 2
        return count

    def ritz(self, k: int) -> _Ritz:
        """The k leading Ritz pairs, leading first."""
        m = self.filled
        values, vectors = torch.linalg.eigh(self._projected[:m, :m])
        size = values.abs() if self._which == "magnitude" else values
        order = size.argsort(descending=True)[:k]
        values, vectors = values[order], vectors[:, order]
        left = vectors.T.to(self._basis.dtype)  # [k, m]
        directions = left @ self._images[:m]
        directions -= (values.to(left.dtype).unsqueeze(1) * left) @ self._basis[:m]
        norms = torch.linalg.vector_norm(directions, dim=1, dtype=torch.float64)
        floor = self._projected[:m, :m].abs().max() * (1e-12 if self._eps < 1e-10 else 1e-6)
        residuals = norms / values.abs().clamp(min=float(floor))
        rounding = 32 * self._eps * self._projected[:m, :m].abs().max()
        residuals = torch.where(norms <= rounding, torch.zeros_like(norms), residuals)
        return _Ritz(values, vectors, residuals, directions)

    def restart_if_full(self, k: int, block: int) -> None:
        """Keep the leading half of the Ritz vectors where the basis has no room left."""
        room = self._basis.shape[0]
        if self.filled + block <= room or room == self._basis.shape[1]:
            return
        keep = max(k + 2, room // 2)
        values, vectors = torch.linalg.eigh(self._projected[: self.filled, : self.filled])
        size = values.abs() if self._which == "magnitude" else values
        order = size.argsort(descending=True)[:keep]
        turn = vectors[:, order].T.to(self._basis.dtype)
        for stored in (self._basis, self._images):
            for columns in range(0, stored.shape[1], 1 << 20):  # no second basis in memory
                some = stored[:, columns : columns + (1 << 20)]
                some[:keep] = turn @ some[: self.filled]
        self.filled = keep
        self._projected.zero_()
        self._projected[:keep, :keep] = values[order].diag()

    def probe(self, steps: int, k: int) -> None:
        """Iterate a random vector in the complement of the basis."""
        vector = self.random()
        for _ in range(steps):
            self.restart_if_full(k, 1)
            if self.filled == self._basis.shape[0] or self.extend(vector) == 0:
                return
            vector = self._images[self.filled - 1 : self.filled].clone()

    def result(self, found: _Ritz, converged: bool) -> Eigenpairs:
        """The pairs in parameter space, ascending."""
        basis = self._basis[: self.filled].clone()
        vectors = found.coefficients.T.flip(0).to(basis.dtype) @ basis
        vectors /= torch.linalg.vector_norm(vectors, dim=1, keepdim=True, dtype=torch.float64)
        captured = float(self._projected[: self.filled, : self.filled].trace())
        return Eigenpairs(
            found.values.flip(0),
            vectors,
            found.residuals.flip(0),
            self.products,
            converged,
            basis,
            captured,
        )

    def _orthonormal(self, vectors: Tensor) -> Tensor:
        """Rows that are orthonormal to the basis and to each other; dependent ones are dropped."""
        kept: list[Tensor] = []
        basis = self._basis[: self.filled]
        for vector in vectors:
            length = _norm(vector)
            if not length > 0:
                continue
            vector = vector / length
            for _ in range(3):
                inside = inner_products(basis, vector.unsqueeze(0))[:, 0]
                vector = vector - inside.to(vector.dtype) @ basis
                for other in kept:
                    vector = vector - (other @ vector) * other
                length = _norm(vector)
                if length < 20 * self._eps:
                    break
                vector = vector / length
                if length > 0.7:
                    kept.append(vector)
                    break
        return torch.stack(kept) if kept else vectors[:0]


def inner_products(first: Tensor, second: Tensor) -> Tensor:
    """Products of all rows of two matrices, summed in float64.

    Args:
        first: [m, P].
        second: [b, P].

    Returns:
        [m, b]. A sum of millions of float32 numbers is not accurate enough for a residual of 1e-4.
    """
    total = torch.zeros(first.shape[0], second.shape[0], dtype=torch.float64, device=first.device)
    for left, right in zip(first.split(_CHUNK, dim=1), second.split(_CHUNK, dim=1), strict=True):
        total += left @ right.T
    return total


def _norm(vector: Tensor) -> float:
    return float(torch.linalg.vector_norm(vector, dtype=torch.float64))
