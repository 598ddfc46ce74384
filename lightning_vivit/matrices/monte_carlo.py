"""The GGN from random columns: few backward passes where a sample has many outputs."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_vivit.errors import OptionError
from lightning_vivit.jacobian.live import LivePart, Space
from lightning_vivit.losses import SampleLoss
from lightning_vivit.matrices.rows import RowMatrix


class MonteCarloGGN(RowMatrix):
    """An estimate whose mean is the GGN: S_n holds M random columns (Dangel et al. 2022).

    Under cross-entropy a column is the gradient for a label drawn from the model's own
    distribution (arXiv:2106.02624, section 2). The trace is unbiased, the largest eigenvalue too
    large where columns are few.
    """

    name = "ggn"
    title = "GGN"
    mark = ""
    directions = "directions"
    source = "[Schraudolph 2002](https://doi.org/10.1162/08997660260028683)"
    has_products = False
    own_columns = True

    def __init__(self, mc_samples: int, generator: torch.Generator | None = None) -> None:
        """Say how many columns are drawn.

        Args:
            mc_samples: M.
            generator: Source of the random numbers; None for torch's default.
        """
        self._mc_samples, self._generator = mc_samples, generator

    def columns(self, depth: int) -> int:
        """M."""
        return self._mc_samples

    def root(self, loss: SampleLoss) -> Tensor:
        """Random roots, [N, D, M]; others at each call."""
        return loss.sampled_root(self._mc_samples, self._generator)

    def multiply(self, part: LivePart, space: Space, vectors: Tensor) -> Tensor:
        """Refuse: each product would have other columns.

        Raises:
            OptionError: Always.
        """
        raise OptionError("Monte-Carlo columns are others at each call, so there is no product.")
