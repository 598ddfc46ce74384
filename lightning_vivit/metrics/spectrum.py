"""Metrics of the curvature's spectrum and of the subspace that its leading eigenvectors span."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_vivit.metrics.diagnostic import ComparisonWithPast, MeanOfUpdates
from lightning_vivit.metrics.functional.spectrum import (
    direction_parts,
    overlap_of_parts,
    spectrum_statistics,
)


class SpectrumStatistics(MeanOfUpdates):
    """Summary of the eigenvalues of the curvature.

    Calling the metric gives the values of that call; `compute` gives their means over the updates
    since the last reset and over all processes. All values are scalars in float64:

    - `trace`: sum of the eigenvalues.
    - `effective_rank`: see `effective_rank`.
    - `top_eigenvalue`: the largest one, the sharpness.
    - `stability_ratio`: see `stability_ratio`; only if a learning rate was given.

    Examples:
        >>> import torch
        >>> from lightning_vivit.metrics import SpectrumStatistics
        >>> metric = SpectrumStatistics()
        >>> values = metric(torch.tensor([0.0, 2.0, 2.0]), learning_rate=0.5)
        >>> {name: round(value.item(), 3) for name, value in values.items()}
        {'trace': 4.0, 'effective_rank': 2.0, 'top_eigenvalue': 2.0, 'stability_ratio': 0.5}
    """

    required = ("trace", "effective_rank", "top_eigenvalue")
    optional = ("stability_ratio",)

    def update(
        self,
        eigenvalues: Tensor,
        learning_rate: float | Tensor | None = None,
        momentum: float | Tensor = 0.0,
    ) -> None:
        """Add one spectrum.

        Args:
            eigenvalues: [K] all eigenvalues that are not zero, in any order.
            learning_rate: Learning rate of the step at which they were taken.
            momentum: Heavy-ball momentum of the optimizer.
        """
        self._record(spectrum_statistics(eigenvalues, learning_rate, momentum))


class SubspaceOverlap(ComparisonWithPast):
    """Overlap of the directions of an update with those of the update before.

    Calling the metric and `compute` give the latest comparison, see `subspace_overlap`: a scalar in
    float64, NaN before the second update, averaged over processes by `compute`. The directions are
    remembered in the state dictionary; `reset` forgets them.

    Examples:
        >>> import torch
        >>> from lightning_vivit.metrics import SubspaceOverlap
        >>> metric = SubspaceOverlap()
        >>> metric(torch.eye(3)[:2]).item(), metric(torch.eye(3)[1:]).item()
        (nan, 0.5)
    """

    plot_lower_bound: float | None = 0.0
    plot_upper_bound: float | None = 1.0

    previous: Tensor
    overlap: Tensor

    def __init__(self, **kwargs: Any) -> None:
        """Start with nothing remembered.

        Args:
            **kwargs: Options of torchmetrics.Metric.
        """
        super().__init__(memories=["previous"], results=["overlap"], **kwargs)

    def update(self, directions: Tensor | Mapping[str, Tensor]) -> None:
        """Compare with the previous directions and remember these.

        Args:
            directions: K orthonormal directions, [K, P] or name -> [K, *shape], over the same
                parameters in all updates. K may change.
        """
        parts = direction_parts(directions)
        if self.previous.numel() > 0:
            overlap = overlap_of_parts(parts, [self.previous])
            self.overlap = overlap.to(self._settle(overlap))
        else:
            self._settle(parts[0])
        self.previous = torch.cat(parts, dim=1)
        self._forward_cache = self.overlap

    def compute(self) -> Tensor:
        """Overlap at the latest update.

        Returns:
            A scalar.
        """
        return self.overlap
