"""What one evaluated problem tells: kernel, spectrum, directions and steps.

An `Evaluation` holds the kernel that was paid for once; the eigenvalues, the directional
derivatives, the Newton step and the NTK of the same batch are cheap linear algebra on it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_vivit.eigen.symmetric import numerical_floor
from lightning_vivit.eigen.trace import TraceEstimate
from lightning_vivit.errors import OptionError
from lightning_vivit.evaluation.derivatives import Damping, Directions, directions_from_gram
from lightning_vivit.evaluation.interface import Facts, Question, Result
from lightning_vivit.evaluation.row_sums import RowSums
from lightning_vivit.evaluation.solved import Grams
from lightning_vivit.evaluation.weights import Weights
from lightning_vivit.factors import MODES
from lightning_vivit.kernel.plan import Plan


class Evaluation(Result):
    """Kernel and Gram matrix of one problem, and all that follows from them.

    Without a loss it knows the NTK alone; with random columns, or evaluated with kernel=False,
    everything else. Attributes and questions are those of `Result`.
    """

    whole_spectrum = True

    def __init__(
        self, facts: Facts, grams: Grams, rows: RowSums, weights: Weights | None, plan: Plan
    ) -> None:
        """Keep the kernels; use `evaluate` to make one."""
        super().__init__(facts)
        self._grams, self._rows, self._plan = grams, rows, plan
        self._weights = weights

    def refusal(self, question: Question) -> str | None:
        """Why a question is not answered, and what to do; None if it is."""
        if question != "ntk":
            no_loss = "The problem has no loss, so only the NTK is known. Give a loss."
            return no_loss if self._weights is None else None
        if self._weights is None or all(
            self._grams.block(g).kernel is not None for g in self.groups
        ):
            return None
        if self._weights.own_columns:
            return (
                "This evaluation has no NTK: columns of each sample's own were backpropagated in "
                "place of the outputs. Evaluate with kernel=True."
            )
        return (
            "This evaluation has no NTK: only the directions of the outputs that the loss sees "
            "were backpropagated. Evaluate with kernel=True."
        )

    @property
    def num_directions(self) -> int:
        """The largest number of directions that can be asked for: samples times columns."""
        return self.num_samples * self._known("directions").directions

    def rank(self, group: str = "all") -> int:
        """Number of eigenvalues above rounding."""
        values = self.eigenvalues(group)
        return int((values > numerical_floor(values, self.outputs.dtype)).sum())

    def trace(self, group: str = "all") -> TraceEstimate:
        """Sum of all eigenvalues, exact."""
        self._known("trace")
        return TraceEstimate(self._grams.trace(group), 0.0, 0)

    def ntk(self, group: str = "all", mode: str = "full") -> Tensor:
        """Empirical neural tangent kernel of the batch; see `Result.ntk`."""
        kernel = self._grams.block(group).kernel
        if kernel is None:
            raise self._refused("ntk")
        if mode == "full":
            return kernel.permute(0, 2, 1, 3)
        if mode == "trace":
            return torch.einsum("ndmd->nm", kernel)
        if mode == "diagonal":
            return torch.einsum("ndmd->nmd", kernel)
        raise OptionError(f"Unknown mode {mode!r}. Supported: {', '.join(MODES)}.")

    def eigenvalues(
        self, group: str = "all", samples: Sequence[int] | None = None, k: int | None = None
    ) -> Tensor:
        """Eigenvalues that can differ from zero: N*M, ascending; see `Result.eigenvalues`.

        The k largest alone take less time in a large Gram matrix.
        """
        weights = self._known("eigenvalues")
        if k is not None:
            return self._grams.eigenpairs(group, k, samples)[0]
        values = self._grams.eigenvalues(group, samples)
        seen = self._grams.columns(group)
        missing = values.numel() // seen * (weights.directions - seen)
        return torch.cat([values.new_zeros(missing), values])  # what the loss does not see

    def directions(
        self,
        group: str = "all",
        k: int | None = None,
        *,
        grad_samples: Sequence[int] | None = None,
        ggn_samples: Sequence[int] | None = None,
    ) -> Directions:
        """Slopes and curvatures of every sample; see `Result.directions`. Costs nothing more."""
        weights = self._known("directions")
        weighted = self._grams.weighted(group)
        ggn, grad = self._grams.indices(ggn_samples), self._grams.indices(grad_samples)
        available = len(ggn) * (weighted.shape[1] - 1)
        beyond = 0  # directions that the loss does not see
        if k is not None and available < k <= self.num_directions:
            k, beyond = available, k - available
        values, vectors = self._grams.eigenpairs(group, k, ggn_samples)
        scale = self._grams.subset_scale(len(ggn))
        slopes = weighted[:, :-1, :, -1]  # [N, M, N]
        if ggn_samples is not None:
            slopes = slopes[ggn]
        if grad_samples is not None:
            slopes = slopes[:, :, grad]
        cross = slopes.reshape(-1, len(grad)) * scale**0.5
        found = directions_from_gram(
            values,
            vectors,
            cross,
            len(ggn),
            scale,
            weights.scale if grad_samples is None else self._grams.subset_scale(len(grad)),
            self.outputs.dtype,
        )
        return found.with_undetermined(beyond)

    def eigenvectors(
        self, group: str = "all", k: int | None = None, samples: Sequence[int] | None = None
    ) -> dict[str, Tensor]:
        """The k leading eigenvectors in parameter space; see `Result.eigenvectors`.

        Costs one backward pass for each. None for k gives all N*M.

        Raises:
            OptionError: k is out of range, or includes directions whose eigenvalue vanishes.
        """
        weights = self._known("eigenvectors")
        values, vectors = self._grams.eigenpairs(group, k, samples)
        if bool((values <= 0).any()):
            raise OptionError(
                f"{int((values <= 0).sum())} of the {values.numel()} eigenvalues vanish, so their "
                "eigenvectors are not determined by this batch. Ask for fewer."
            )
        coefficients = self._output_coefficients(weights.root, values, vectors, samples)
        found = self._row_sums(group, coefficients)
        norms = [
            torch.linalg.vector_norm(part.reshape(len(part), -1), dim=1) for part in found.values()
        ]
        norm = torch.linalg.vector_norm(torch.stack(norms), dim=0)
        for part in found.values():
            part.div_(norm.reshape(-1, *[1] * (part.ndim - 1)))
        return found

    def gradient_norm_squared(self, group: str = "all") -> Tensor:
        """Squared norm of the loss's gradient with respect to the group, scalar."""
        weights = self._known("gradient_norm_squared")
        return self._grams.weighted(group)[:, -1, :, -1].sum() * weights.scale**2

    def gradient(self, group: str = "all") -> dict[str, Tensor]:
        """Gradient of the loss as this evaluation saw it; see `Result.gradient`."""
        weights = self._known("gradient")
        found = self._row_sums(group, (weights.gradient * weights.scale).unsqueeze(2))
        return {name: part[0] for name, part in found.items()}

    def gradient_norms(self, group: str = "all") -> Tensor:
        """Norms of the per-sample gradients g_n with respect to the group, [N].

        Their squares are the diagonal of the gradients' Gram matrix, which the kernel gives for
        nothing.
        """
        self._known("gradient_norms")
        return self._grams.weighted(group)[:, -1, :, -1].diagonal().clamp(min=0.0).sqrt()

    def gradient_variance(self, group: str = "all") -> Tensor:
        """Total variance of the per-sample gradients: mean of |g_n - mean g|^2, scalar."""
        self._known("gradient_variance")
        gram = self._grams.weighted(group)[:, -1, :, -1]
        return (gram.diagonal().mean() - gram.mean()).clamp(min=0.0)

    def newton_step(
        self,
        group: str = "all",
        k: int | None = None,
        damping: Damping = 0.0,
        *,
        grad_samples: Sequence[int] | None = None,
        ggn_samples: Sequence[int] | None = None,
    ) -> dict[str, Tensor]:
        """Damped Newton step; see `Result.newton_step`. None for k gives all determined ones."""
        weights = self._known("newton_step")
        if k is not None and k <= self.num_directions:  # no step where the loss sees nothing
            k = min(k, len(self._grams.indices(ggn_samples)) * self._grams.columns(group))
        found = self.directions(group, k, grad_samples=grad_samples, ggn_samples=ggn_samples)
        steps = found.newton_coefficients(damping)
        values, vectors = self._grams.eigenpairs(group, k, ggn_samples)
        known = steps != 0
        coefficients = self._output_coefficients(
            weights.root, values[known], vectors[:, known], ggn_samples
        )
        total = (coefficients @ steps[known].to(coefficients.dtype)).unsqueeze(2)
        return {name: part[0] for name, part in self._row_sums(group, total).items()}

    def explain(self) -> str:
        """What each layer cost: a table of order of contraction, time, memory and share."""
        return self._plan.table()

    def _output_coefficients(
        self, root: Tensor, values: Tensor, vectors: Tensor, samples: Sequence[int] | None
    ) -> Tensor:
        """Weights [N, D, K] of the Jacobian rows whose sums are the eigenvectors."""
        kept = self._grams.indices(samples)
        root = root[kept]
        scale = self._grams.subset_scale(len(kept))
        parts = vectors.reshape(len(kept), -1, values.numel())
        some = torch.bmm(root, parts) * (scale / values).sqrt()
        if samples is None:
            return some
        whole = some.new_zeros(self.num_samples, *some.shape[1:])
        whole.index_add_(0, torch.tensor(kept, device=whole.device), some)
        return whole

    def _known(self, question: Question) -> Weights:
        """What the loss makes of the Jacobian; raises the refusal where there is none."""
        if self._weights is None:
            raise self._refused(question)
        return self._weights

    def _row_sums(self, group: str, weights: Tensor) -> dict[str, Tensor]:
        """Sums of a group's Jacobian rows with weights [N, D, K]: name -> [K, *shape]."""
        return self._rows.of(self._grams.block(group).names, weights)
