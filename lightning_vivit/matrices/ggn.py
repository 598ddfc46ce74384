"""The generalized Gauss-Newton matrix of the loss."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_vivit.losses import SampleLoss
from lightning_vivit.matrices.matrix import Matrix
from lightning_vivit.matrices.monte_carlo import MonteCarloGGN
from lightning_vivit.matrices.rows import RowMatrix


class GGN(RowMatrix):
    """scale * sum_n J_n^T H_n J_n, H_n the Hessian of l_n in the outputs (Schraudolph 2002).

    The Hessian of the loss where the network is linear in its parameters, and never negative for
    a loss that is convex in the outputs.
    """

    name = "ggn"
    title = "GGN"
    mark = ""
    directions = "directions"
    source = "[Schraudolph 2002](https://doi.org/10.1162/08997660260028683)"

    def root(self, loss: SampleLoss) -> Tensor:
        """Roots S_n of H_n, [N, D, M]."""
        return loss.hessian_root()

    def basis(self, loss: SampleLoss) -> Tensor | None:
        """What the loss sees of the outputs."""
        return loss.basis()

    def product(self, loss: SampleLoss, vectors: Tensor, overwrite: bool = False) -> Tensor:
        """H_n times vectors, [N, D, K]."""
        return loss.hessian_product(vectors, overwrite)

    def root_product(
        self, loss: SampleLoss, vectors: Tensor, transpose: bool = False
    ) -> Tensor | None:
        """S_n times vectors, [N, D, K]; None from a loss that can only form its roots."""
        return loss.root_product(vectors, transpose)

    def sampled(self, mc_samples: int, generator: torch.Generator | None) -> Matrix:
        """The estimate with random roots whose product is H_n on average."""
        return MonteCarloGGN(mc_samples, generator)
