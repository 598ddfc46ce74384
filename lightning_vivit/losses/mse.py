"""Mean squared error, with a target that broadcasts as in torch."""

from __future__ import annotations

import torch

from lightning_vivit.errors import ProblemError
from lightning_vivit.losses.call import LossCall
from lightning_vivit.losses.elementwise import ElementwiseLoss
from lightning_vivit.losses.sample_loss import (
    compute_dtype,
    read_options,
    read_outputs,
    read_target,
    read_weight,
)
from lightning_vivit.losses.scaling import scale_terms
from lightning_vivit.samples.layout import SampleLayout


class SquaredError(ElementwiseLoss):
    """`F.mse_loss`: phi = weight (f - y)^2.

    Where the target makes the outputs broadcast, one output entry has several terms; they belong
    to the sample of that entry.
    """

    def __init__(self, call: LossCall, layout: SampleLayout) -> None:
        """Read the call.

        Args:
            call: A call of `mse_loss`.
            layout: Which rows of the outputs belong to which sample.
        """
        outputs, target = read_outputs(call, layout), read_target(call)
        options = read_options(call, {"reduction": "mean", "weight": None})
        dtype, shape = compute_dtype(outputs), outputs.shape
        try:
            terms_shape = torch.broadcast_shapes(shape, target.shape)
        except RuntimeError as error:
            raise ProblemError(
                f"mse_loss got a target of shape {tuple(target.shape)} for outputs of shape "
                f"{tuple(shape)}; the shapes must be equal or broadcast."
            ) from error
        weight = read_weight(call, "weight", options["weight"], dtype)
        if weight is not None and weight.shape != shape:
            raise ProblemError(
                f"mse_loss got a weight of shape {tuple(weight.shape)} for outputs of shape "
                f"{tuple(shape)}; the shapes must be equal."
            )
        normalizer = float(terms_shape.numel() if weight is None else weight.sum())
        scaling = scale_terms(
            call, layout.num_samples, terms_shape, normalizer, options["reduction"], dtype
        )
        difference = outputs.to(dtype) - target.to(dtype)
        factor = (1.0 if weight is None else weight) * scaling.coefficient
        slopes = 2.0 * factor * difference
        curvatures = (2.0 * torch.ones_like(difference)) * factor
        super().__init__(
            call,
            layout,
            scaling.scale,
            normalizer,
            (factor * difference**2).sum_to_size(shape),
            slopes.sum_to_size(shape),
            curvatures.sum_to_size(shape),
        )
