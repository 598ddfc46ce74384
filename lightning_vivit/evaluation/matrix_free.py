"""Leading eigenpairs, directions and trace of a problem, without a Gram matrix.

A `MatrixFreeEvaluation` answers the questions that the monitors ask an `Evaluation`, as far as
the k leading eigenpairs go. Choose it where samples times outputs are too many for a Gram matrix:
a thousand classes, language models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_vivit.eigen.dense import numerical_floor
from lightning_vivit.eigen.lanczos import Eigenpairs, leading_eigenpairs, search_vectors
from lightning_vivit.eigen.start import Start, starting_block
from lightning_vivit.eigen.sums import normalise
from lightning_vivit.eigen.trace import TraceEstimate, estimate_trace
from lightning_vivit.errors import OptionError
from lightning_vivit.evaluation.directions import Damping, Directions
from lightning_vivit.matrixfree.dual import DualSpace
from lightning_vivit.matrixfree.live import Space
from lightning_vivit.matrixfree.products import Products
from lightning_vivit.problem.problem import Problem


class MatrixFreeEvaluation:
    """The k leading eigenpairs of one problem, and what follows from them.

    Attributes:
        groups: Group name -> parameter names.
        num_samples: N.
        outputs: [N, D], detached.
        targets: The loss call's target as given; None if there are several microbatches.
        ignore_index: Class index that the loss ignores.
        loss: Value of the loss as the user reduces it.
        scale: The loss is ``scale * sum_n l_n``.
        unused: Trainable parameters that do not influence the outputs.
        matrix: ``ggn`` or ``hessian``.
        tol: Tolerance of the residuals.
    """

    def __init__(
        self,
        problem: Problem,
        groups: Mapping[str, list[str]],
        *,
        k: int,
        tol: float = 1e-3,
        matrix: str = "ggn",
        which: str = "largest",
        microbatch: int | None = None,
        start: Mapping[str, Start] | None = None,
        max_products: int | None = None,
        max_memory: int | None = None,
        trace_samples: int = 6,
        seed: int = 0,
    ) -> None:
        """Prepare the products; eigenpairs are computed when they are asked for.

        Args:
            problem: What is differentiated; it needs a loss.
            groups: Group name -> parameter names.
            k: Eigenpairs of each group that will be asked for (more can be, at a further cost).
            tol: Largest relative residual of an eigenpair.
            matrix: ``ggn`` or ``hessian``.
            which: ``largest`` (algebraic) or ``magnitude`` eigenvalues.
            microbatch: Samples that are in memory at once; None for as many as fit.
            start: What `warm_start` of an earlier evaluation gave.
            max_products: Upper limit of products for each group; None for 20 k + 100.
            max_memory: Bytes for the graph of the samples that are in memory at once, if there is
                no `microbatch`; None for half of what is free.
            trace_samples: Random vectors for the trace.
            seed: Of all random vectors.

        Raises:
            OptionError: Unknown matrix, no loss, or an impossible option.
            ProblemError: The problem is not supported.
            InteractionError: Samples influence each other.
        """
        names = [name for members in groups.values() for name in members]
        self._products = Products(
            problem, names, matrix=matrix, microbatch=microbatch, max_memory=max_memory
        )
        self._duals: dict[str, DualSpace | None] = {}
        self._pushed: dict[str, Tensor] = {}  # J e of the eigenvectors, [N, D, K]
        self._spaces = {group: self._products.space(own) for group, own in groups.items()}
        self._k, self.tol, self.matrix, self._which = k, tol, matrix, which
        self._start = dict(start or {})
        self._max_products, self._trace_samples = max_products, trace_samples
        self._seed = seed
        self._pairs: dict[str, Eigenpairs] = {}
        self._traces: dict[str, TraceEstimate] = {}
        self._gradients: dict[str, Tensor] = {}
        self.groups = {group: list(own) for group, own in groups.items()}
        self.num_samples = self._products.num_samples
        self.outputs = self._products.outputs
        self.targets, self.ignore_index = self._products.targets, self._products.ignore_index
        self.loss = self._products.value
        self.scale = self._products.scale
        self.unused = self._products.unused()

    @property
    def num_directions(self) -> int:
        """The largest number of directions that can differ from zero: samples times outputs."""
        return self.num_samples * self._products.depth

    @property
    def products(self) -> int:
        """Products so far, each 1 to 1.5 training steps (with the Hessian 1.5 to 2.5)."""
        duals = [dual.halves for dual in self._duals.values() if dual is not None]
        return -(-(self._products.halves + sum(duals)) // 2)

    def eigenpairs(self, group: str = "all", k: int | None = None) -> Eigenpairs:
        """The leading eigenpairs of a group with their residuals.

        Args:
            group: Parameter group.
            k: How many; None for the number given at the start.

        Returns:
            At least k pairs. A warning is given if they did not converge.

        Raises:
            OptionError: Unknown group, or k below 1 or above the number of parameters.
        """
        if k is not None and k < 1:
            raise OptionError(f"Got k={k} directions. Choose k >= 1.")
        space = self._space(group)
        wanted = max(min(self._k, space.size), 0 if k is None else k)
        known = self._pairs.get(group)
        if known is not None and known.values.numel() >= wanted:
            return known
        start: Tensor | None = None
        warm = self._start.get(group)
        if known is not None:
            start = known.vectors
        elif warm is not None and warm.vectors.shape[1] == space.size:
            start = starting_block(warm, self.tol)
        products = self._products
        dual = self._dual(group)
        if dual is not None and wanted > dual.size:
            dual = None
        with products.prepared():
            if dual is not None and start is not None:
                start = dual.push(start)
            found = leading_eigenpairs(
                lambda vectors: products.multiply(space, vectors),
                space.size if dual is None else dual.size,
                wanted,
                halves=dual,
                tol=self.tol,
                which=self._which,
                start=start,
                max_products=self._max_products,
                max_basis=None if dual is None else dual.vectors(search_vectors(wanted)),
                dtype=products.dtype,
                device=products.device,
                generator=torch.Generator().manual_seed(self._seed),
            )
        if dual is not None:
            vectors = dual.expand(found.vectors)
            norms = normalise(vectors)
            self._pushed[group] = dual.pushed(found.vectors) / norms
            found = replace(
                found,
                values=self.scale * found.values,
                vectors=vectors,
                captured=self.scale * found.captured,
            )
        if not found.converged:
            rank_zero_warn(
                f"After {found.products} curvature-vector products the {wanted} leading "
                f"eigenpairs of group {group!r} have residuals up to "
                f"{float(found.residuals.max()):.1e} instead of {self.tol:.1e}. Their values are "
                "the best found so far. Use a larger tol or max_products, or fewer pairs.",
                category=RuntimeWarning,
            )
        self._pairs[group] = found
        return found

    def eigenvalues(
        self,
        group: str = "all",
        samples: Sequence[int] | None = None,
        k: int | None = None,
    ) -> Tensor:
        """The k leading eigenvalues, [k] ascending, float64; k as `directions` takes it.

        Raises:
            OptionError: A subset of the samples, which this method does not have; or k above the
                number of parameters or below 1.
        """
        _refuse_subset(samples)
        values = self.eigenpairs(group, k).values
        return values if k is None else values[-k:]

    def rank(self, group: str = "all") -> int:
        """How many of the k leading eigenvalues are above rounding."""
        values = self.eigenvalues(group)
        return int((values > numerical_floor(values, self._products.dtype)).sum())

    def eigenvectors(
        self, group: str = "all", k: int | None = None, samples: Sequence[int] | None = None
    ) -> dict[str, Tensor]:
        """The k leading eigenvectors: parameter name -> [K, *shape], ascending, norm 1.

        Raises:
            OptionError: k is out of range, or a subset of the samples.
        """
        _refuse_subset(samples)
        pairs = self.eigenpairs(group, k)
        count = self._k if k is None else k
        return self._space(group).split(pairs.vectors[-count:])

    def directions(
        self,
        group: str = "all",
        k: int | None = None,
        *,
        grad_samples: Sequence[int] | None = None,
        ggn_samples: Sequence[int] | None = None,
    ) -> Directions:
        """Slopes and curvatures of every sample along the k leading eigenvectors.

        Args:
            group: Parameter group.
            k: Number of directions; None for the number given at the start.
            grad_samples: Not supported here.
            ggn_samples: Not supported here.

        Returns:
            The directions, ascending. Costs k Jacobian-vector products; nothing where the search
            went among vectors over samples and outputs, which has them already.

        Raises:
            OptionError: k is out of range, a subset of the samples, or the Hessian.
        """
        _refuse_subset(grad_samples)
        _refuse_subset(ggn_samples)
        if self.matrix != "ggn":
            raise OptionError("Directions are those of the GGN. Use matrix='ggn'.")
        pairs = self.eigenpairs(group, k)
        count = min(self._k if k is None else k, pairs.values.numel())
        values = pairs.values[-count:]
        if group in self._pushed:
            slopes, curvatures = self._products.along(self._pushed[group][..., -count:])
        else:
            slopes, curvatures = self._products.derivatives(
                self._space(group), pairs.vectors[-count:]
            )
        known = values > numerical_floor(values, self._products.dtype)
        gammas = torch.where(known, slopes, torch.nan)
        return Directions(values, gammas, curvatures, self.scale, self.scale)

    def newton_step(
        self, group: str = "all", k: int | None = None, damping: Damping = 0.0
    ) -> dict[str, Tensor]:
        """Damped Newton step in the span of the k leading eigenvectors.

        Args:
            group: Parameter group.
            k: Number of directions; None for the number given at the start.
            damping: As in `Directions.newton_coefficients`.

        Returns:
            Parameter name -> step [*shape].
        """
        found = self.directions(group, k)
        coefficients = found.newton_coefficients(damping).to(self._products.dtype)
        vectors = self.eigenpairs(group, k).vectors[-coefficients.numel() :]
        step = self._space(group).split((coefficients @ vectors).unsqueeze(0))
        return {name: part[0] for name, part in step.items()}

    def trace(self, group: str = "all") -> TraceEstimate:
        """Trace of the matrix with its standard error, by Hutch++ on the solver's basis.

        Costs `trace_samples` Jacobian-vector products (full products for the Hessian).
        """
        if group not in self._traces:
            pairs, space, dual = self.eigenpairs(group), self._space(group), self._dual(group)
            if pairs.basis.shape[1] == space.size:
                dual = None

            def form(vectors: Tensor) -> Tensor:
                if dual is not None:
                    return self.scale * dual.squares(dual.pull(vectors))
                return self._products.quadratic(space, vectors)

            with self._products.prepared():
                self._traces[group] = estimate_trace(
                    form,
                    pairs.basis,
                    pairs.captured,
                    self._trace_samples,
                    torch.Generator().manual_seed(self._seed + 1),
                )
        return self._traces[group]

    def gradient_norm_squared(self, group: str = "all") -> Tensor:
        """Squared norm of the loss's gradient with respect to the group, scalar."""
        if group not in self._gradients:
            gradient = self._products.gradient(self._space(group))
            self._gradients[group] = gradient.square().sum(dtype=torch.float64)
        return self._gradients[group]

    def gradient(self, group: str = "all") -> dict[str, Tensor]:
        """Gradient of the loss, parameter name -> [*shape]; costs one backward pass."""
        space = self._space(group)
        parts = space.split(self._products.gradient(space).reshape(1, -1))
        return {name: part[0] for name, part in parts.items()}

    def gradient_norms(self, group: str = "all") -> Tensor:
        """Norms of the per-sample gradients, [N]; costs a backward pass for each sample."""
        return self._products.sample_gradient_norms(self._space(group))

    def gradient_variance(self, group: str = "all") -> Tensor:
        """Total variance of the per-sample gradients: mean of |g_n - mean g|^2, scalar."""
        mean = self.gradient_norm_squared(group) / (self.scale * self.num_samples) ** 2
        return (self.gradient_norms(group).square().mean() - mean).clamp(min=0.0)

    def ntk(self, group: str = "all", mode: str = "full") -> Tensor:
        """Refuse: there is no kernel.

        Raises:
            OptionError: Always.
        """
        raise OptionError(
            "A matrix-free evaluation has no NTK. Evaluate with kernel=True or method='gram', and "
            "with fewer samples or outputs if that does not fit into memory."
        )

    def sample_targets(self) -> Tensor | None:
        """The targets with one row per sample; None if they are not a tensor of rows."""
        targets: Any = self.targets
        if not isinstance(targets, Tensor) or targets.ndim == 0:
            return None
        rows, count = targets.shape[0], self.num_samples
        if rows == count:
            return targets
        return self._products.split_rows(targets) if rows % count == 0 else None

    def warm_start(self) -> dict[str, Start]:
        """What the evaluation of the next monitored step can start from."""
        return {
            group: Start(pairs.values.detach(), pairs.vectors.detach())
            for group, pairs in self._pairs.items()
        }

    def explain(self) -> str:
        """Products, residuals and what they say of each group."""
        lines = [f"{'group':<12} {'k':>4} {'products':>9} {'largest residual':>17} converged"]
        for group, pairs in self._pairs.items():
            lines.append(
                f"{group:<12} {pairs.values.numel():>4} {pairs.products:>9} "
                f"{float(pairs.residuals.max()):>17.1e} {'yes' if pairs.converged else 'no'}"
            )
        return "\n".join(lines)

    def _dual(self, group: str) -> DualSpace | None:
        if group not in self._duals:
            self._duals[group] = self._products.dual(self._space(group))
        return self._duals[group]

    def _space(self, group: str) -> Space:
        if group not in self._spaces:
            raise OptionError(
                f"Unknown parameter group {group!r}. This evaluation has: "
                f"{', '.join(self._spaces)}."
            )
        return self._spaces[group]


def _refuse_subset(samples: Sequence[int] | None) -> None:
    if samples is not None:
        raise OptionError(
            "A matrix-free evaluation is one of all samples. Evaluate the subset as a problem of "
            "its own, or use method='gram'."
        )
