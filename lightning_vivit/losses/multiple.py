"""A loss times a number: what a microbatch's own loss is in the loss of the whole batch."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_vivit.losses.sample_loss import SampleLoss


class MultipleLoss(SampleLoss):
    """The per-sample losses l_n of another loss, times a factor."""

    def __init__(self, loss: SampleLoss, factor: float) -> None:
        """Keep the loss.

        Args:
            loss: Whose l_n are multiplied.
            factor: At least zero. The loss stays scale * sum_n l_n, with the scale divided by it.
        """
        self._loss, self._factor = loss, factor
        self.scale = loss.scale / factor if factor else float("nan")
        self.normalizer = loss.normalizer

    def value(self) -> Tensor:
        """Losses l_n, [N]."""
        return self._factor * self._loss.value()

    def gradient(self) -> Tensor:
        """Gradients r_n, [N, D]."""
        return self._factor * self._loss.gradient()

    def hessian_root(self) -> Tensor:
        """Roots S_n, [N, D, M]."""
        return self._factor**0.5 * self._loss.hessian_root()

    def hessian_product(self, vectors: Tensor, overwrite: bool = False) -> Tensor:
        """Hessians H_n times vectors, [N, D, K]."""
        return self._factor * self._loss.hessian_product(vectors, overwrite)

    def root_product(self, vectors: Tensor, transpose: bool = False) -> Tensor | None:
        """Roots S_n times vectors, [N, D, K]; None if the loss can only form its roots."""
        product = self._loss.root_product(vectors, transpose)
        return None if product is None else self._factor**0.5 * product

    def basis(self) -> Tensor | None:
        """Columns that span all gradients and roots, if fewer than D do: the loss's own."""
        return self._loss.basis()

    def sampled_root(self, mc_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Random roots, [N, D, M]."""
        return self._factor**0.5 * self._loss.sampled_root(mc_samples, generator)
