"""Binary cross-entropy from logits, with soft targets, weights and positive weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_vivit.errors import ProblemError
from lightning_vivit.losses.call import LossCall
from lightning_vivit.losses.elementwise import ElementwiseLoss
from lightning_vivit.losses.sample_loss import (
    compute_dtype,
    random_device,
    read_options,
    read_outputs,
    read_target,
    read_weight,
)
from lightning_vivit.losses.scaling import scale_terms
from lightning_vivit.samples.layout import SampleLayout


class BinaryCrossEntropy(ElementwiseLoss):
    """`F.binary_cross_entropy_with_logits`.

    phi = weight ((1 - y) softplus(f) + pos_weight y softplus(-f)), so with s = sigmoid(f) the
    slope is weight ((1 - y) s - pos_weight y (1 - s)) and the curvature is
    weight (1 - y + pos_weight y) s (1 - s). 1 - s is computed as sigmoid(-f).
    """

    def __init__(self, call: LossCall, layout: SampleLayout) -> None:
        """Read the call.

        Args:
            call: A call of `binary_cross_entropy_with_logits`.
            layout: Which rows of the outputs belong to which sample.
        """
        outputs, target = read_outputs(call, layout), read_target(call)
        options = read_options(call, {"reduction": "mean", "weight": None, "pos_weight": None})
        dtype, shape = compute_dtype(outputs), outputs.shape
        if target.shape != shape:
            raise ProblemError(
                f"{call.name} got a target of shape {tuple(target.shape)} for outputs of shape "
                f"{tuple(shape)}; the shapes must be equal."
            )
        factors = {}
        for key in ("weight", "pos_weight"):
            factor = read_weight(call, key, options[key], dtype)
            factor = (
                torch.ones((), device=outputs.device, dtype=dtype) if factor is None else factor
            )
            try:
                factors[key] = factor.expand(shape)
            except RuntimeError as error:
                raise ProblemError(
                    f"{call.name} got a {key} of shape {tuple(factor.shape)}, which does not "
                    f"broadcast to the outputs of shape {tuple(shape)}."
                ) from error
        scaling = scale_terms(
            call, layout.num_samples, shape, float(shape.numel()), options["reduction"], dtype
        )
        f, y = outputs.to(dtype), target.to(dtype)
        factor = factors["weight"] * scaling.coefficient
        negative, positive = factor * (1.0 - y), factor * factors["pos_weight"] * y
        self._evidence = negative + positive
        if bool((self._evidence < 0).any()):
            raise ProblemError(
                f"{call.name} got targets outside 0..1 for which the loss is not convex in the "
                "outputs. Pass targets between 0 and 1."
            )
        self._on, self._off = f.sigmoid(), (-f).sigmoid()
        super().__init__(
            call,
            layout,
            scaling.scale,
            float(shape.numel()),
            -negative * F.logsigmoid(-f) - positive * F.logsigmoid(f),
            negative * self._on - positive * self._off,
            self._evidence * self._on * self._off,
        )

    def _draw(self, mc_samples: int, generator: torch.Generator | None) -> Tensor:
        """Gradients for labels drawn from the model: s - 1 with probability s, else s."""
        on, off = self._on.unsqueeze(-1), self._off.unsqueeze(-1)
        uniform = torch.rand(
            *self._on.shape,
            mc_samples,
            generator=generator,
            device=random_device(generator, on),
            dtype=on.dtype,
        ).to(on.device)
        return torch.where(uniform < on, -off, on) * self._evidence.sqrt().unsqueeze(-1)
