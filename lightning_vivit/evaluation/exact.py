"""What one evaluated problem tells: kernel, spectrum, directions and steps.

An `Evaluation` holds the kernel that was paid for once; the eigenvalues, the directional
derivatives, the Newton step and the NTK of the same batch are cheap linear algebra on it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_vivit.eigen.dense import numerical_floor
from lightning_vivit.errors import OptionError
from lightning_vivit.evaluation.directions import Damping, Directions, directions_from_gram
from lightning_vivit.evaluation.row_sums import RowSums
from lightning_vivit.evaluation.solved import NO_LOSS, Block, Grams
from lightning_vivit.factors import MODES
from lightning_vivit.kernel.compute import Kernels
from lightning_vivit.losses import SampleLoss
from lightning_vivit.parallel import Whole
from lightning_vivit.problem.problem import Recording
from lightning_vivit.samples.layout import SampleLayout


class Evaluation:
    """Results of one evaluated problem.

    Attributes:
        groups: Group name -> parameter names.
        num_samples: N.
        outputs: [N, D], detached.
        targets: The loss call's target as given; None without a loss.
        ignore_index: Class index that the loss ignores.
        loss: Value of the loss as the user reduces it; None without a loss.
        scale: The loss is ``scale * sum_n l_n``; None without a loss.
        unused: Trainable parameters that do not influence the outputs.
    """

    def __init__(
        self,
        recording: Recording,
        layout: SampleLayout,
        loss: SampleLoss | None,
        root: Tensor | None,
        gradient: Tensor | None,
        directions: int,
        blocks: dict[str, Block],
        kernels: Kernels,
        unused: Sequence[str],
        basis: Tensor | None,
        whole: Whole | None = None,
    ) -> None:
        """Keep the kernels; use `evaluate` to make one."""
        self._whole = whole  # all ranks' samples; what was recorded are this rank's
        self._live_outputs = recording.outputs
        self._root = root
        self._gradient = gradient  # [N, D] of the samples' losses in the outputs
        self._directions = directions  # of each sample, those that the loss does not see included
        self._plan = kernels.plan
        shared = basis is not None or all(block.kernel is not None for block in blocks.values())
        factors = kernels.factors if shared else None
        self._rows = RowSums(recording, layout, factors, basis, whole)
        self.groups = {name: block.names for name, block in blocks.items()}
        self.num_samples = layout.num_samples
        self.outputs = layout.flatten(recording.outputs.detach())
        self.targets = None if recording.loss is None else recording.loss.target
        self.loss = recording.value
        self.scale = None if loss is None else loss.scale
        self.ignore_index = -100
        if recording.loss is not None:
            self.ignore_index = int(recording.loss.options.get("ignore_index", -100))
        self.unused = list(unused)
        self._targets_layout = layout
        if whole is not None:
            self._targets_layout, self.num_samples = whole.layout, whole.num_samples
            self.outputs = whole.outputs
            self.targets = None if whole.call is None else whole.call.target
            if loss is not None and recording.value is not None:
                self.loss = (loss.scale * loss.value().sum()).to(recording.value.dtype)
        dtype = recording.outputs.dtype
        self._grams = Grams(blocks, self.num_samples, self.scale, dtype, whole)

    @property
    def num_directions(self) -> int:
        """The largest number of directions that can be asked for: samples times columns."""
        if self._root is None:
            raise OptionError(NO_LOSS)
        return self.num_samples * self._directions

    def sample_targets(self) -> Tensor | None:
        """The targets with one row per sample, [N, ...]; None if they are not a tensor of rows."""
        targets = self.targets
        if not isinstance(targets, Tensor) or targets.ndim == 0:
            return None
        by_sample = targets.shape[0] == self.num_samples
        return targets if by_sample else self._targets_layout.split(targets)

    def rank(self, group: str = "all") -> int:
        """Number of eigenvalues of the GGN above rounding."""
        values = self.eigenvalues(group)
        return int((values > numerical_floor(values, self._live_outputs.dtype)).sum())

    def ntk(self, group: str = "all", mode: str = "full") -> Tensor:
        """Empirical neural tangent kernel of the batch.

        Args:
            group: Parameter group.
            mode: ``full``: [N, N, D, D]; ``trace``: [N, N], summed over outputs; ``diagonal``:
                [N, N, D].

        Returns:
            The kernel in the layout of `mode`.

        Raises:
            OptionError: Unknown mode or group, or Monte-Carlo columns.
        """
        kernel = self._grams.kernel(group)
        if mode == "full":
            return kernel.permute(0, 2, 1, 3)
        if mode == "trace":
            return torch.einsum("ndmd->nm", kernel)
        if mode == "diagonal":
            return torch.einsum("ndmd->nmd", kernel)
        raise OptionError(f"Unknown mode {mode!r}. Supported: {', '.join(MODES)}.")

    def eigenvalues(
        self,
        group: str = "all",
        samples: Sequence[int] | None = None,
        k: int | None = None,
    ) -> Tensor:
        """Eigenvalues of the GGN that can differ from zero.

        Args:
            group: Parameter group.
            samples: Restrict the GGN to these samples of the batch.
            k: Only the k largest, which take less time in a large Gram matrix; None for all.

        Returns:
            [N*M] or [K] ascending, M = D for exact columns.

        Raises:
            OptionError: k is out of range.
        """
        if k is not None:
            return self._grams.eigenpairs(group, k, samples)[0]
        values = self._grams.eigenvalues(group, samples)
        seen = self._grams.columns(group)
        missing = values.numel() // seen * (self._directions - seen)
        return torch.cat([values.new_zeros(missing), values])  # what the loss does not see

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
            k: Number of directions; None for all N*M.
            grad_samples: Samples whose slopes are wanted; None for all.
            ggn_samples: Samples of which the GGN is made; None for all.

        Returns:
            The directions, ascending in their eigenvalues.

        Raises:
            OptionError: k is out of range.
        """
        weighted, gradient_scale = self._grams.weighted(group)
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
            self._grams.subset_scale(len(grad)) if grad_samples is not None else gradient_scale,
            self._live_outputs.dtype,
        )
        return found.with_undetermined(beyond)

    def eigenvectors(
        self, group: str = "all", k: int | None = None, samples: Sequence[int] | None = None
    ) -> dict[str, Tensor]:
        """The k leading eigenvectors of the GGN in parameter space.

        Args:
            group: Parameter group.
            k: Number of eigenvectors; None for all N*M.
            samples: Restrict the GGN to these samples of the batch.

        Returns:
            Parameter name -> [K, *shape], ascending in their eigenvalues; each has norm 1 over
            the group. Costs one backward pass for each eigenvector.

        Raises:
            OptionError: k is out of range, or includes directions whose eigenvalue vanishes.
        """
        values, vectors = self._grams.eigenpairs(group, k, samples)
        if bool((values <= 0).any()):
            raise OptionError(
                f"{int((values <= 0).sum())} of the {values.numel()} eigenvalues vanish, so their "
                "eigenvectors are not determined by this batch. Ask for fewer."
            )
        coefficients = self._output_coefficients(values, vectors, samples)
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
        weighted, scale = self._grams.weighted(group)
        return weighted[:, -1, :, -1].sum() * scale**2

    def gradient(self, group: str = "all") -> dict[str, Tensor]:
        """Gradient of the loss with respect to the group, as this evaluation saw it.

        Args:
            group: Parameter group.

        Returns:
            Parameter name -> gradient [*shape]. Costs one backward pass.

        Raises:
            OptionError: Unknown group, or the problem has no loss.
        """
        self._grams.block(group)
        if self._gradient is None or self.scale is None:
            raise OptionError(NO_LOSS)
        found = self._row_sums(group, (self._gradient * self.scale).unsqueeze(2))
        return {name: part[0] for name, part in found.items()}

    def gradient_norms(self, group: str = "all") -> Tensor:
        """Norms of the per-sample gradients g_n with respect to the group, [N].

        Their squares are the diagonal of the gradients' Gram matrix, which the kernel gives for
        nothing.
        """
        weighted, _ = self._grams.weighted(group)
        return weighted[:, -1, :, -1].diagonal().clamp(min=0.0).sqrt()

    def gradient_variance(self, group: str = "all") -> Tensor:
        """Total variance of the per-sample gradients: mean of |g_n - mean g|^2, scalar."""
        weighted, _ = self._grams.weighted(group)
        gram = weighted[:, -1, :, -1]
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
        """Damped Newton step in the span of the k leading eigenvectors.

        Args:
            group: Parameter group.
            k: Number of directions; None for all that the batch determines.
            damping: A number, [K] numbers, or a function of (eigenvalues, gammas, lambdas).
            grad_samples: Samples of which the gradient is taken; None for all.
            ggn_samples: Samples of which the GGN is made; None for all.

        Returns:
            Parameter name -> step [*shape]: sum over k of -slope_k / (curvature_k + damping_k)
            e_k.
        """
        if k is not None and k <= self.num_directions:  # no step where the loss sees nothing
            k = min(k, len(self._grams.indices(ggn_samples)) * (self._grams.columns(group)))
        found = self.directions(group, k, grad_samples=grad_samples, ggn_samples=ggn_samples)
        steps = found.newton_coefficients(damping)
        values, vectors = self._grams.eigenpairs(group, k, ggn_samples)
        known = steps != 0
        coefficients = self._output_coefficients(values[known], vectors[:, known], ggn_samples)
        total = (coefficients @ steps[known].to(coefficients.dtype)).unsqueeze(2)
        return {name: part[0] for name, part in self._row_sums(group, total).items()}

    def explain(self) -> str:
        """What each layer cost: a table of order of contraction, time, memory and share."""
        return self._plan.table()

    def _output_coefficients(
        self, values: Tensor, vectors: Tensor, samples: Sequence[int] | None
    ) -> Tensor:
        """Weights [N, D, K] of the Jacobian rows whose sums are the eigenvectors."""
        assert self._root is not None
        kept = self._grams.indices(samples)
        root = self._root[kept]
        scale = self._grams.subset_scale(len(kept))
        parts = vectors.reshape(len(kept), -1, values.numel())
        some = torch.bmm(root, parts) * (scale / values).sqrt()
        if samples is None:
            return some
        whole = some.new_zeros(self.num_samples, *some.shape[1:])
        whole.index_add_(0, torch.tensor(kept, device=whole.device), some)
        return whole

    def _row_sums(self, group: str, weights: Tensor) -> dict[str, Tensor]:
        """Sums of a group's Jacobian rows with weights [N, D, K]: name -> [K, *shape]."""
        return self._rows.of(self._grams.block(group).names, weights)
