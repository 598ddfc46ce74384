"""What the statistics of a matrix's spectrum share."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from lightning_vivit.eigen.trace import TraceEstimate
from lightning_vivit.matrices import Matrix
from lightning_vivit.matrices.ggn import GGN
from lightning_vivit.statistics.look import Look


@dataclass
class CurvatureLook(Look):
    """The spectrum of a matrix in one parameter group.

    Attributes:
        matrix: Whose eigenvalues they are.
        rate: Learning rate and momentum; None without an optimizer that has them.
    """

    matrix: Matrix = field(default_factory=GGN)
    rate: tuple[float, float] | None = None

    @property
    def whole(self) -> bool:
        """Whether all eigenvalues are known, not only the leading ones."""
        return self.result.whole_spectrum

    @cached_property
    def _found(self) -> tuple[Tensor, int]:
        """The eigenvalues, and products that they took."""
        before = self.result.products
        return self.result.eigenvalues(self.group), self.result.products - before

    @property
    def eigenvalues(self) -> Tensor:
        """All that are known, ascending."""
        return self._found[0]

    @property
    def products(self) -> int:
        """Matrix-vector products that the search for them took."""
        return self._found[1]

    @property
    def top(self) -> Tensor:
        """The k largest eigenvalues, [k], the largest first."""
        return self.eigenvalues.flip(0)[: self.k]

    @cached_property
    def determined(self) -> int:
        """How many of the eigenvalues are above rounding."""
        return self.result.rank(self.group)

    @cached_property
    def trace(self) -> TraceEstimate:
        """Sum of all eigenvalues with its standard error."""
        return self.result.trace(self.group)

    @property
    def subspace(self) -> int:
        """Dimension of the top subspace: k, if so many directions are determined."""
        if self.whole:
            return min(self.k, self.determined)
        return self.k if not self.matrix.semidefinite or self.determined >= self.k else 0
