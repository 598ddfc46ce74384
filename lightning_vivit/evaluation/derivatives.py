"""Per-sample slopes and curvatures along the GGN's eigenvectors, and the steps they suggest.

Definitions follow ViViT (Dangel, Tatzel and Hennig 2022, arXiv:2106.02624, section 3).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_vivit.eigen.symmetric import numerical_floor
from lightning_vivit.errors import OptionError

Damping: TypeAlias = "float | Tensor | Callable[[Tensor, Tensor, Tensor], Tensor]"


@dataclass(frozen=True)
class Directions:
    """Derivatives of every sample along the K leading eigenvectors of the GGN.

    Attributes:
        eigenvalues: [K] ascending.
        gammas: [N, K], g_n . e_k. Each column's sign is that of its eigenvector. NaN where the
            eigenvalue vanishes, because the eigenvector is then not determined by the batch.
        lambdas: [N', K], e_k^T (J_n^T H_n J_n) e_k.
        scale: The loss is ``scale * sum_n l_n``: 1/N for mean reductions, 1 for sums.
        gradient_scale: The same for the samples that the gradient is taken over.
    """

    eigenvalues: Tensor  # [K]
    gammas: Tensor  # [N, K]
    lambdas: Tensor  # [N', K]
    scale: float
    gradient_scale: float

    def with_undetermined(self, count: int) -> Directions:
        """These directions after `count` further ones whose eigenvalue is zero."""
        if count == 0:
            return self
        return Directions(
            F.pad(self.eigenvalues, (count, 0)),
            F.pad(self.gammas, (count, 0), value=float("nan")),
            F.pad(self.lambdas, (count, 0)),
            self.scale,
            self.gradient_scale,
        )

    def slopes(self) -> Tensor:
        """Slope of the loss along each direction, [K]."""
        return self.gradient_scale * self.gammas.sum(0)

    def curvatures(self) -> Tensor:
        """Curvature of the loss along each direction, [K]: the eigenvalues."""
        return self.scale * self.lambdas.sum(0)

    def newton_coefficients(self, damping: Damping = 0.0) -> Tensor:
        """Coordinates of the damped Newton step along the directions.

        Args:
            damping: A number, [K] numbers, or a function of (eigenvalues, gammas, lambdas) that
                returns [K].

        Returns:
            [K]: -slope / (curvature + damping); 0 where a direction is not determined.

        Raises:
            OptionError: Damping of the wrong shape, or not above minus the curvature.
        """
        if callable(damping):
            damping = damping(self.eigenvalues, self.gammas, self.lambdas)
        shift = torch.as_tensor(damping, dtype=self.eigenvalues.dtype).to(self.eigenvalues.device)
        if shift.ndim > 1 or (shift.ndim == 1 and shift.shape != self.eigenvalues.shape):
            raise OptionError(
                f"Got damping of shape {tuple(shift.shape)}. Supported: one number, or one for "
                f"each of the {self.eigenvalues.numel()} directions."
            )
        slopes = self.slopes()
        known = ~torch.isnan(slopes)
        bottom = self.curvatures() + shift
        if bool((bottom[known] <= 0).any()):
            raise OptionError(
                "Curvature plus damping is not positive along some direction, so a Newton step "
                "would diverge. Use a positive damping."
            )
        return torch.where(known, -slopes / bottom, torch.zeros_like(slopes))


def directions_from_gram(
    eigenvalues: Tensor,
    eigenvectors: Tensor,
    cross: Tensor,
    num_samples: int,
    scale: float,
    gradient_scale: float,
    dtype: torch.dtype,
) -> Directions:
    """Gammas and lambdas from eigenpairs of the Gram matrix.

    Args:
        eigenvalues: mu, [K] ascending.
        eigenvectors: u, [N'*M, K].
        cross: V^T g_n for all n, [N'*M, N].
        num_samples: N', the samples of the GGN.
        scale: Scale of the GGN's loss.
        gradient_scale: Scale of the gradient's loss.
        dtype: The dtype in which the kernel was computed.

    Returns:
        gamma_nk = (V^T g_n) . u_k / sqrt(mu_k) and lambda_nk = mu_k |u_k restricted to n|^2 /
        scale, which is (Gram u_k)^2 / mu_k summed over the columns of n.
    """
    known = eigenvalues > numerical_floor(eigenvalues, dtype)
    root = torch.where(known, eigenvalues, torch.nan).sqrt()
    gammas = cross.T @ eigenvectors / root
    parts = eigenvectors.reshape(num_samples, -1, eigenvalues.numel()).square().sum(1)
    lambdas = parts * eigenvalues.clamp(min=0.0) / scale
    return Directions(eigenvalues, gammas, lambdas, scale, gradient_scale)
