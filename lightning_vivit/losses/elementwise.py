"""Losses that are sums of terms of one output entry each: the Hessian is diagonal."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_vivit.losses.call import LossCall
from lightning_vivit.losses.sample_loss import (
    SampleLoss,
    check_finite,
    check_mc_samples,
    compute_dtype,
    random_device,
)
from lightning_vivit.losses.scaling import average_draws, scale_terms
from lightning_vivit.samples.layout import SampleLayout


class ElementwiseLoss(SampleLoss):
    """Per-sample quantities from scaled terms and their derivatives."""

    def __init__(
        self,
        call: LossCall,
        layout: SampleLayout,
        scale: float,
        normalizer: float,
        terms: Tensor,
        slopes: Tensor,
        curvatures: Tensor,
    ) -> None:
        """Keep the terms.

        Args:
            call: The call of the loss.
            layout: Which rows of the outputs belong to which sample.
            scale: Factor outside the sum over samples.
            normalizer: What reduction "mean" divides by.
            terms: Scaled terms, of the shape of the outputs.
            slopes: Their first derivatives, of the same shape.
            curvatures: Their second derivatives, of the same shape, zero or positive.
        """
        check_finite(call, terms, slopes)
        self.scale, self.normalizer = scale, normalizer
        self._layout, self._dtype = layout, call.outputs.dtype
        self._terms, self._slopes, self._curvatures = terms, slopes, curvatures

    @classmethod
    def of_terms(
        cls,
        call: LossCall,
        layout: SampleLayout,
        terms: Tensor,
        slopes: Tensor,
        curvatures: Tensor,
    ) -> ElementwiseLoss:
        """The loss whose unreduced entries and their derivatives are given.

        Args:
            call: The call of the loss; its option `reduction` is "mean" (also if it has none),
                "sum" or "none", and "mean" divides by the number of entries.
            layout: Which rows of the outputs belong to which sample.
            terms: What the loss returns for reduction "none", of the shape of the outputs.
            slopes: First derivatives, of the same shape.
            curvatures: Second derivatives, of the same shape, zero or positive.

        Returns:
            The loss, with the scale of its reduction.
        """
        dtype = compute_dtype(call.outputs)
        reduction = call.options.get("reduction", "mean")
        scaling = scale_terms(
            call, layout.num_samples, terms.shape, float(terms.numel()), reduction, dtype
        )
        factor = scaling.coefficient
        parts = [part.detach().to(dtype) * factor for part in (terms, slopes, curvatures)]
        count = float(terms.numel())
        return cls(call, layout, scaling.scale, count, parts[0], parts[1], parts[2])

    def value(self) -> Tensor:
        """Losses l_n, [N]."""
        return self._layout.flatten(self._terms).sum(1)

    def gradient(self) -> Tensor:
        """Gradients r_n, [N, D]."""
        return self._layout.flatten(self._slopes).to(self._dtype)

    def hessian_root(self) -> Tensor:
        """Roots S_n, [N, D, D], diagonal."""
        return self._layout.flatten(self._curvatures).sqrt().diag_embed().to(self._dtype)

    def hessian_product(self, vectors: Tensor, overwrite: bool = False) -> Tensor:
        """Curvatures times vectors, [N, D, K]."""
        curvatures = self._layout.flatten(self._curvatures).to(self._dtype).unsqueeze(-1)
        return vectors.mul_(curvatures) if overwrite else vectors * curvatures

    def root_product(self, vectors: Tensor, transpose: bool = False) -> Tensor:
        """Roots of the curvatures times vectors, [N, D, K]."""
        root = self._layout.flatten(self._curvatures).sqrt()
        return root.to(self._dtype).unsqueeze(-1) * vectors

    def sampled_root(self, mc_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Columns of independent entries with mean zero and the curvatures as variances."""
        check_mc_samples(mc_samples)
        columns = self._layout.split(average_draws(self._draw(mc_samples, generator)))
        return columns.reshape(self._layout.num_samples, -1, mc_samples).to(self._dtype)

    def _draw(self, mc_samples: int, generator: torch.Generator | None) -> Tensor:
        """Gaussian draws with the Hessian as covariance, [N*T, ..., M]."""
        root = self._curvatures.sqrt().unsqueeze(-1)
        noise = torch.randn(
            *self._curvatures.shape,
            mc_samples,
            generator=generator,
            device=random_device(generator, root),
            dtype=root.dtype,
        )
        return root * noise.to(root.device)
