"""A growing orthonormal basis with a projected matrix, and the pairs that it gives.

The state of the search in `lanczos`: a Krylov decomposition A B^T = B^T T + E^T C.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_vivit.eigen.sums import inner_products, norm, normalise
from lightning_vivit.errors import ProblemError

_LITTLE = 0.5  # share of a vector after orthogonalisation, below which it is done again
_COLUMNS = 1 << 20  # of a basis that are turned at a time


class Halves(Protocol):
    """A symmetric matrix that is multiplied in two steps.

    Attributes:
        width: Entries of what the first step gives; 0 if that is not wanted.
    """

    width: int

    def __call__(self, columns: Tensor, forms: Tensor) -> Tensor:
        """The products of b vectors [b, P]; writes what the first step gives to b of [width]."""


@dataclass(frozen=True)
class Eigenpairs:
    """The result of a search.

    Attributes:
        values: [k] ascending (for ``magnitude``: ascending in magnitude), float64.
        vectors: [k, P], orthonormal rows, or what `leading_eigenpairs` says of `halves`.
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


@dataclass(frozen=True)
class Ritz:
    """Ritz pairs of the wanted end of the spectrum, leading first.

    Attributes:
        values: [k].
        coefficients: [m, k].
        residuals: [k], relative.
        edges: [r, k], residual vectors in terms of the edge.
        following: Size of the next value, which is not wanted; 0 if there is none.
    """

    values: Tensor
    coefficients: Tensor
    residuals: list[float]
    edges: NDArray[np.float64]
    following: float

    @property
    def count(self) -> int:
        """How many there are."""
        return self.values.numel()


class Search:
    """An orthonormal basis B, the projected matrix T, and the edge E with A B^T = B^T T + E^T C.

    The r rows of E are orthonormal, and orthogonal to the basis. T and C are small and lie on the
    CPU, where an operation on an array takes a microsecond and one on a tensor ten.
    """

    def __init__(
        self,
        halves: Halves,
        size: int,
        room: int,
        which: str,
        dtype: torch.dtype,
        device: torch.device | str,
        random: Callable[[], Tensor],
    ) -> None:
        """Start with an empty basis; the arguments are those of `leading_eigenpairs`."""
        self._multiply, self._which, self._random = halves, which, random
        self._basis = torch.empty(room, size, dtype=dtype, device=device)
        self._between = self._basis.new_empty(room, halves.width)  # what the first halves gave
        self._projected = np.zeros((room, room))  # T
        self._edge = self._basis[:0]  # E
        self._coefficients = np.zeros((0, room))  # C, [r, room]
        self._eps = torch.finfo(dtype).eps
        self._grew = False
        self.filled = 0
        self.products = 0

    def extend(self, vectors: Tensor | None = None) -> int:
        """Orthonormalise vectors against basis and edge, multiply and append them.

        Args:
            vectors: [b, size]; None for a random one, which is also taken if none of them is
                independent of the basis.

        Returns:
            How many were appended.
        """
        room = self._basis.shape[0] - self.filled
        new = self._orthonormal(self._random() if vectors is None else vectors)[:room]
        if new.shape[0] == 0 and vectors is not None:
            new = self._orthonormal(self._random())[:room]
        if new.shape[0] == 0 and self._edge.shape[0] > 0:  # nothing else is left
            return self.expand(np.eye(self._edge.shape[0])[:, :1])
        return self._append(new)

    def expand(self, edges: NDArray[np.float64]) -> int:
        """Append the directions in the edge that some residual vectors have.

        Args:
            edges: [r, b], residual vectors in terms of the edge.

        Returns:
            How many were appended.
        """
        if self._edge.shape[0] > 1:
            turn = np.linalg.qr(edges, mode="complete").Q.T
            self._edge = torch.from_numpy(turn).to(self._edge) @ self._edge
            self._coefficients = turn @ self._coefficients
        count = min(edges.shape[1], self._edge.shape[0], self._basis.shape[0] - self.filled)
        new, self._edge = self._edge[:count], self._edge[count:]
        self._coefficients = self._coefficients[count:]
        return self._append(new)

    @property
    def rank(self) -> int:
        """Rows of the edge."""
        return self._edge.shape[0]

    def probe(self, steps: int, k: int) -> None:
        """Iterate a random vector in the complement of the basis."""
        for step in range(steps):
            self.restart_if_full(k, 1)
            rank = self._edge.shape[0]
            if self.filled == self._basis.shape[0]:
                return
            if step == 0:
                if self.extend() == 0:
                    return
            elif self._grew:  # the newest direction of the edge
                self.expand(np.eye(rank)[:, -1:])
            else:
                return

    def ritz(self, k: int) -> Ritz:
        """The k leading Ritz pairs, leading first."""
        m = self.filled
        projected = self._projected[:m, :m]
        values, vectors = torch.linalg.eigh(torch.from_numpy(projected))
        found = values.tolist()
        size = abs if self._which == "magnitude" else float
        order = sorted(range(m), key=lambda place: size(found[place]), reverse=True)
        following = size(found[order[k]]) if m > k else 0.0
        values, vectors = values[order[:k]], vectors[:, order[:k]]
        edges = self._coefficients[:, :m] @ vectors.numpy()
        lengths = np.sqrt((edges * edges).sum(0)).tolist()
        largest = float(np.abs(projected).max())
        floor = max(
            largest * (1e-12 if self._eps < 1e-10 else 1e-6), torch.finfo(values.dtype).tiny
        )
        rounding = 32 * self._eps * largest
        residuals = [
            length / max(abs(found[place]), floor) if length > rounding else 0.0
            for length, place in zip(lengths, order, strict=False)
        ]
        return Ritz(values, vectors, residuals, edges, following)

    def restart_if_full(self, k: int, block: int) -> None:
        """Keep the leading half of the Ritz vectors where the basis has no room left."""
        room = self._basis.shape[0]
        if self.filled + block <= room or room == self._basis.shape[1]:
            return
        keep = max(k + 2, room // 2)
        projected = torch.from_numpy(self._projected[: self.filled, : self.filled])
        values, vectors = torch.linalg.eigh(projected)
        size = values.abs() if self._which == "magnitude" else values
        order = size.argsort(descending=True)[:keep]
        turn = vectors[:, order].T.to(self._basis)
        for matrix in (self._basis, self._between):
            for some in matrix.split(_COLUMNS, dim=1):  # no second basis in memory
                some[:keep] = turn @ some[: self.filled]
        coefficients = self._coefficients[:, : self.filled] @ vectors[:, order].numpy()
        self._coefficients = np.zeros_like(self._coefficients)
        self._coefficients[:, :keep] = coefficients
        self.filled = keep
        self._projected[:] = 0.0
        self._projected[range(keep), range(keep)] = values[order].numpy()

    def _append(self, new: Tensor) -> int:
        """Multiply orthonormal vectors and append them."""
        old, count = self.filled, new.shape[0]
        if count == 0:
            return 0
        images = self._multiply(new, self._between[old : old + count])
        self.products += count
        self._basis[old : old + count] = new
        self.filled = old + count
        basis = self._basis[: self.filled]
        recent = slice(max(0, old - count), self.filled)
        inner = np.zeros((self.filled, count))
        rest, lengths = images, [math.inf] * count
        # Most of an image lies along the newest vectors: without that, one pass over all is exact.
        for place, some in enumerate((recent, slice(None), slice(None))):
            befores = lengths
            found = inner_products(basis[some], rest)
            rest = torch.addmm(rest, found.T.to(basis.dtype), basis[some], alpha=-1.0)
            inner[some] += found.cpu().numpy()
            lengths = [norm(vector) for vector in rest]
            if not all(map(math.isfinite, lengths)):
                raise ProblemError(
                    "A curvature-vector product is not finite: the network's derivatives "
                    "overflowed. Look at the loss and the learning rate, or use more precision."
                )
            small = any(now < _LITTLE * then for now, then in zip(lengths, befores, strict=True))
            if place > 0 and not small:
                break  # else what is left may be rounding of what was taken
        self._projected[: self.filled, old : self.filled] = inner
        self._projected[old : self.filled, :old] = inner[:old].T
        own = inner[old:]
        self._projected[old : self.filled, old : self.filled] = (own + own.T) / 2
        rank = self._edge.shape[0]
        for index, vector in enumerate(rest):
            self._to_edge(
                vector, lengths[index], old + index, math.hypot(*inner[:, index].tolist())
            )
        self._grew = self._edge.shape[0] > rank
        return count

    def _to_edge(self, vector: Tensor, whole: float, column: int, scale: float) -> None:
        """Write the residual of one product in terms of the edge, with a new row if it needs it.

        The vector's memory is used.
        """
        for _ in range(2 if self._edge.shape[0] else 0):
            inside = inner_products(self._edge, vector.unsqueeze(0))[:, 0]
            self._coefficients[:, column] += inside.cpu().numpy()
            vector = vector - inside.to(vector.dtype) @ self._edge
        length = norm(vector) if self._edge.shape[0] else whole
        if length <= 4 * self._eps * max(scale, whole):
            return
        vector /= length
        if length < 0.03 * max(scale, whole):  # may be rounding, which the basis holds
            for stored in (self._basis[: self.filled], self._edge):
                inside = inner_products(stored, vector.unsqueeze(0))[:, 0]
                vector = vector - inside.to(vector.dtype) @ stored
            again = norm(vector)
            if again < 0.5:
                return
            vector = vector / again
        last = vector.unsqueeze(0)
        self._edge = torch.cat([self._edge, last]) if self._edge.shape[0] else last
        row = np.zeros_like(self._projected[:1])
        row[0, column] = length
        self._coefficients = np.concatenate([self._coefficients, row])

    def result(self, found: Ritz, converged: bool) -> Eigenpairs:
        """The pairs, ascending; their vectors in the form that the first half has, if any."""
        basis = self._basis[: self.filled]
        if basis.device.type != "cpu":  # there, what was not written to takes no memory
            basis = basis.clone()
        coefficients = found.coefficients.T.flip(0).to(basis)
        if self._between.shape[1] > 0:
            vectors = coefficients @ self._between[: self.filled]
        else:
            vectors = coefficients @ basis
            normalise(vectors)
        captured = float(np.trace(self._projected[: self.filled, : self.filled]))
        values = found.values.flip(0).to(basis.device)
        return Eigenpairs(
            values,
            vectors,
            values.new_tensor(found.residuals).flip(0),
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
            length = norm(vector)
            if not length > 0:
                continue
            vector = vector / length
            for _ in range(3):
                for stored in (basis, self._edge):
                    inside = inner_products(stored, vector.unsqueeze(0))[:, 0]
                    vector = vector - inside.to(vector.dtype) @ stored
                for other in kept:
                    vector = vector - (other @ vector) * other
                length = norm(vector)
                if length < 20 * self._eps:
                    break
                vector = vector / length
                if length > 0.7:
                    kept.append(vector)
                    break
        return torch.stack(kept) if kept else vectors[:0]
