"""What the statistics of slopes and curvatures along the leading eigenvectors share."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from lightning_vivit.errors import ProblemError
from lightning_vivit.evaluation.derivatives import Directions
from lightning_vivit.machine.numbers import double
from lightning_vivit.matrices import Matrix
from lightning_vivit.matrices.ggn import GGN
from lightning_vivit.statistics.look import Look


@dataclass
class DirectionLook(Look):
    """Samples along the leading directions of a matrix in one parameter group.

    Attributes:
        damping: Of Newton steps.
        matrix: Whose directions they are.
    """

    damping: float = 0.0
    matrix: Matrix = field(default_factory=GGN)

    @cached_property
    def found(self) -> Directions:
        """All k directions, ascending in their eigenvalues."""
        return self.result.directions(self.group, self.k)

    @cached_property
    def _leading(self) -> Tensor:
        """Indices of the determined directions, the largest eigenvalue first."""
        determined = ~self.found.gammas[0].isnan()
        order = torch.arange(determined.numel() - 1, -1, -1, device=determined.device)
        order = order[determined[order]]
        if order.numel() == 0:
            raise ProblemError(
                f"All eigenvalues of the {self.matrix.title} in parameter group {self.group!r} "
                "vanish, so no direction is determined. Look for saturated outputs or unused "
                "parameters."
            )
        return order

    @cached_property
    def gammas(self) -> Tensor:
        """Slopes of the samples along the determined directions, which point uphill, [N, K]."""
        gammas = self.found.gammas[:, self._leading]
        return gammas * torch.where(double(gammas).mean(0) < 0, -1.0, 1.0).to(gammas)

    @cached_property
    def lambdas(self) -> Tensor:
        """Curvatures of the samples along them, [N', K]."""
        return self.found.lambdas[:, self._leading]

    @cached_property
    def gradient_norm_squared(self) -> Tensor:
        """Of the loss, over the parameter group."""
        return self.result.gradient_norm_squared(self.group)

    @cached_property
    def sample_norms(self) -> Tensor:
        """Norms of the per-sample gradients, [N]."""
        return self.result.gradient_norms(self.group)
