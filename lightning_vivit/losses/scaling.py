"""All scaling of losses: reductions, weights, smoothing, Monte-Carlo columns.

A loss is written as loss = scale * sum_i coefficient_i * phi_i, with one term phi_i per entry of
what the functional returns for reduction "none", and l_n is the sum of coefficient_i * phi_i over
the entries of sample n. The modules of the single losses know phi and its derivatives only.

| reduction | multiplier | scale | coefficient_i |
|---|---|---|---|
| mean | number m | 1/N | m N / normalizer |
| sum | number m | 1 | m |
| none | number m | 1 | m |
| none | tensor w | 1/N | N w_i |

The normalizer is what torch divides by: the number of entries, or a sum of weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_vivit.errors import ProblemError
from lightning_vivit.losses.call import LossCall
from lightning_vivit.machine.numbers import all_finite

REDUCTIONS = ("mean", "sum", "none")


@dataclass(frozen=True)
class Scaling:
    """loss = scale * sum_i coefficient_i * phi_i.

    Attributes:
        scale: Factor outside the sum over samples.
        coefficient: A number, or one per term.
    """

    scale: float
    coefficient: float | Tensor


def scale_terms(
    call: LossCall,
    num_samples: int,
    shape: torch.Size,
    normalizer: float,
    reduction: str,
    dtype: torch.dtype,
) -> Scaling:
    """Scale and coefficients of the terms of a loss.

    Args:
        call: The call, for its multiplier.
        num_samples: Number of samples N.
        shape: Shape of the terms, that is, of the result for reduction "none".
        normalizer: What the functional divides by for reduction "mean".
        reduction: Reduction of the functional.
        dtype: Dtype for coefficients.
    """
    if reduction not in REDUCTIONS:
        raise ProblemError(
            f"{call.name} got reduction {reduction!r}; supported are {', '.join(REDUCTIONS)}."
        )
    multiplier = call.multiplier
    if isinstance(multiplier, Tensor) and multiplier.ndim > 0 and reduction == "none":
        if multiplier.shape != shape:
            raise ProblemError(
                f"The multiplier of {call.name} has shape {tuple(multiplier.shape)}, but the "
                f"unreduced loss has shape {tuple(shape)}. Pass one entry per entry of the loss."
            )
        weights = multiplier.detach().to(call.outputs.device, dtype)
        _check_multiplier(call, bool((weights >= 0).all()) and all_finite(weights))
        return Scaling(1.0 / num_samples, weights * num_samples)
    if isinstance(multiplier, Tensor) and multiplier.numel() != 1:
        raise ProblemError(
            f"The multiplier of {call.name} has shape {tuple(multiplier.shape)}, but its "
            f"reduction {reduction!r} returns a scalar. Pass a number."
        )
    factor = float(multiplier)
    _check_multiplier(call, 0.0 <= factor < math.inf)
    if reduction != "mean":
        return Scaling(1.0, factor)
    if not normalizer > 0.0:
        raise ProblemError(
            f"{call.name} with reduction 'mean' divides by a sum of weights that is {normalizer}. "
            "Give at least one entry of the batch a positive weight."
        )
    return Scaling(1.0 / num_samples, factor * num_samples / normalizer)


def _check_multiplier(call: LossCall, valid: bool) -> None:
    if not valid:
        raise ProblemError(
            f"The result of {call.name} enters the loss with a negative or non-finite factor, so "
            "the loss is not convex in the outputs. Supported are factors that are zero or "
            "positive."
        )


def class_index_weights(
    call: LossCall, target: Tensor, num_classes: int, options: dict[str, Any], dtype: torch.dtype
) -> tuple[Tensor, float]:
    """Effective weight of every class at every position, for targets that are class indices.

    Each term is phi = -sum_c t_c log p_c with t = weight * ((1 - s) onehot + s / C) for the
    weight of the labelled class in the first and of class c in the second part, zero at ignored
    positions.

    Args:
        call: The call, for messages.
        target: Class indices, any shape.
        num_classes: Number of classes C.
        options: `weight` ([C] or None), `ignore_index` and `label_smoothing`.
        dtype: Dtype of the result.

    Returns:
        t [*shape, C], and the normalizer of reduction "mean".
    """
    weight, smoothing = options["weight"], options["label_smoothing"]
    if weight is None:
        weight = torch.ones(num_classes, device=target.device, dtype=dtype)
    kept = target != options["ignore_index"]
    outside = kept & ((target < 0) | (target >= num_classes))
    if bool(outside.any()):
        raise ProblemError(
            f"{call.name} got the target class {int(target[outside][0])}, but the outputs have "
            f"{num_classes} classes. Targets must lie in 0..{num_classes - 1} or equal "
            f"ignore_index ({options['ignore_index']})."
        )
    labels = target.masked_fill(~kept, 0).unsqueeze(-1)
    own = weight[labels] * kept.unsqueeze(-1)  # [*shape, 1]
    normalizer = float(own.sum(dtype=torch.float64))
    if normalizer == 0.0:
        raise ProblemError(
            f"All targets of {call.name} are ignored (the sum of their weights is zero), so the "
            "loss has no curvature. Pass a batch with at least one target that counts."
        )
    if smoothing:
        weights = weight * (smoothing / num_classes) * kept.unsqueeze(-1)
    else:
        weights = torch.zeros(*target.shape, num_classes, device=target.device, dtype=dtype)
    return weights.scatter_add(-1, labels, own * (1.0 - smoothing)), normalizer


def class_probability_weights(
    call: LossCall, target: Tensor, options: dict[str, Any], dtype: torch.dtype
) -> tuple[Tensor, float]:
    """The same for targets that are class probabilities: t = weight * ((1 - s) target + s / C).

    Args:
        call: The call, for messages.
        target: Probabilities, [*shape, C].
        options: `weight` ([C] or None) and `label_smoothing`.
        dtype: Dtype of the result.

    Returns:
        t [*shape, C], and the normalizer of reduction "mean": the number of positions.
    """
    target, smoothing = target.to(dtype), options["label_smoothing"]
    if bool((target < 0).any()):
        raise ProblemError(
            f"{call.name} got class probabilities below zero. Pass probabilities, or class "
            "indices as an integer tensor without a class axis."
        )
    weights = target * (1.0 - smoothing) + smoothing / target.shape[-1]
    if options["weight"] is not None:
        weights = weights * options["weight"]
    return weights, float(target.numel() // target.shape[-1])


def average_draws(columns: Tensor) -> Tensor:
    """Scale M independent Monte-Carlo columns, [..., M], so that their products average."""
    return columns / math.sqrt(columns.shape[-1])
