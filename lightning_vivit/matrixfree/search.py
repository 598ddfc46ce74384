"""The leading eigenpairs and the trace of a matrix over one group of parameters, from products."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_vivit.eigen.lanczos import Eigenpairs, leading_eigenpairs, search_vectors
from lightning_vivit.eigen.start import Start, starting_block
from lightning_vivit.eigen.sums import normalise
from lightning_vivit.eigen.trace import TraceEstimate, estimate_trace
from lightning_vivit.jacobian.live import Space
from lightning_vivit.matrixfree.dual import DualSpace
from lightning_vivit.matrixfree.products import Products


@dataclass
class GroupSearch:
    """Eigenpairs that are searched when they are asked for, and kept.

    Attributes:
        products: With the matrix.
        space: The parameters.
        group: What messages call them.
        k: Pairs that a search looks for at least, if there are so many.
        tol: Largest relative residual of a pair.
        which: ``largest`` (algebraic) or ``magnitude`` eigenvalues.
        start: What an earlier search found.
        max_products: Upper limit of products; None for 20 k + 100.
        pushed: J e of the eigenvectors, [N, D, K], where the search went among vectors over
            samples and columns, which has them; else None.
    """

    products: Products
    space: Space
    group: str
    k: int
    tol: float
    which: str = "largest"
    start: Start | None = None
    max_products: int | None = None
    pushed: Tensor | None = field(default=None, init=False)
    _known: Eigenpairs | None = field(default=None, init=False)

    @cached_property
    def dual(self) -> DualSpace | None:
        """The matrix among vectors over samples and columns, where that is cheaper."""
        return self.products.dual(self.space)

    @property
    def found(self) -> Eigenpairs | None:
        """The pairs so far."""
        return self._known

    @property
    def halves(self) -> int:
        """Half products that were spent beside those of `products`."""
        dual = self.__dict__.get("dual")
        return 0 if dual is None else dual.halves

    def pairs(self, k: int | None = None) -> Eigenpairs:
        """At least k leading pairs; None for `self.k`. A warning says if they did not converge."""
        wanted = max(min(self.k, self.space.size), 0 if k is None else k)
        known = self._known
        if known is not None and known.values.numel() >= wanted:
            return known
        dual = self.dual
        if dual is not None and wanted > dual.size:
            dual = None
        start = self._starting_vectors()
        products = self.products
        with products.prepared():
            if dual is not None and start is not None:
                start = dual.push(start)
            found = leading_eigenpairs(
                lambda vectors: products.multiply(self.space, vectors),
                self.space.size if dual is None else dual.size,
                wanted,
                halves=dual,
                tol=self.tol,
                which=self.which,
                start=start,
                max_products=self.max_products,
                max_basis=None if dual is None else dual.vectors(search_vectors(wanted)),
                dtype=products.dtype,
                device=products.device,
                generator=torch.Generator().manual_seed(0),
            )
        self.pushed = None
        if dual is not None:
            found = self._expanded(dual, found)
        if not found.converged:
            rank_zero_warn(
                f"After {found.products} products the {wanted} leading eigenpairs of the "
                f"{products.matrix.title} of group {self.group!r} have residuals up to "
                f"{float(found.residuals.max()):.1e} instead of {self.tol:.1e}. Their values are "
                "the best found so far. Use a larger tol or max_products, or fewer pairs.",
                category=RuntimeWarning,
            )
        self._known = found
        return found

    def trace(self, samples: int) -> TraceEstimate:
        """Trace of the matrix with its standard error, by Hutch++ on the basis of the search.

        Args:
            samples: Random vectors; each costs a quadratic form.
        """
        pairs, scale, dual = self.pairs(), self.products.scale, self.dual
        if pairs.basis.shape[1] == self.space.size:
            dual = None

        def form(vectors: Tensor) -> Tensor:
            if dual is not None:
                return scale * dual.squares(dual.pull(vectors))
            return self.products.quadratic(self.space, vectors)

        draws = torch.Generator().manual_seed(1)
        with self.products.prepared():
            return estimate_trace(form, pairs.basis, pairs.captured, samples, draws)

    def _starting_vectors(self) -> Tensor | None:
        """[s, P] from what is known; None for a random start."""
        if self._known is not None:
            return self._known.vectors
        if self.start is None or self.start.vectors.shape[1] != self.space.size:
            return None
        return starting_block(self.start, self.tol)

    def _expanded(self, dual: DualSpace, found: Eigenpairs) -> Eigenpairs:
        """The pairs over the parameters from those of V^T V."""
        vectors = dual.expand(found.vectors)
        norms = normalise(vectors)
        self.pushed = dual.pushed(found.vectors) / norms
        scale = self.products.scale
        return replace(
            found, values=scale * found.values, vectors=vectors, captured=scale * found.captured
        )
