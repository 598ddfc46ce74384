"""Rules for normalisation layers: the scale sees the normalised input, the shift sees ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_vivit.factors import Factor
from lightning_vivit.rules.broadcast import reduce_columns
from lightning_vivit.rules.registry import Use, register_rule


def _scale_and_shift(
    use: Use, normalised: Tensor, weight: Tensor | None, bias: Tensor | None, shape: tuple[int, ...]
) -> list[tuple[Tensor, Factor]]:
    """Factors of y = normalised * weight + bias with both broadcast from `shape`."""
    found: list[tuple[Tensor, Factor]] = []
    if weight is not None and use.wants(weight):
        products = use.columns * use.axis.split(normalised.detach())[:, None]
        found.append((weight, reduce_columns(use, products, shape, weight)))
    if bias is not None and use.wants(bias):
        found.append((bias, reduce_columns(use, use.columns, shape, bias)))
    return found


def _channel_shape(tensor: Tensor) -> tuple[int, ...]:
    """How a per-channel parameter broadcasts against [N, C, *spatial]."""
    return (tensor.shape[1],) + (1,) * (tensor.ndim - 2)


@register_rule(F.layer_norm)
def layer_norm(use: Use) -> list[tuple[Tensor, Factor]] | None:
    """Scale and shift over the last axes."""
    names = ("input", "normalized_shape", "weight", "bias", "eps")
    inputs, shape, weight, bias, eps = use.arguments(*names, eps=1e-5)
    if use.axis.dim >= inputs.ndim - len(shape):
        return None
    normalised = use.once("n", lambda: F.layer_norm(inputs.detach(), shape, None, None, eps))
    return _scale_and_shift(use, normalised, weight, bias, tuple(shape))


@register_rule(F.rms_norm, torch.rms_norm)
def rms_norm(use: Use) -> list[tuple[Tensor, Factor]] | None:
    """Scale over the last axes."""
    inputs, shape, weight, eps = use.arguments("input", "normalized_shape", "weight", "eps")
    if use.axis.dim >= inputs.ndim - len(shape):
        return None
    normalised = use.once("n", lambda: F.rms_norm(inputs.detach(), shape, None, eps))
    return _scale_and_shift(use, normalised, weight, None, tuple(shape))


@register_rule(F.group_norm)
def group_norm(use: Use) -> list[tuple[Tensor, Factor]] | None:
    """Scale and shift per channel."""
    names = ("input", "num_groups", "weight", "bias", "eps")
    inputs, groups, weight, bias, eps = use.arguments(*names, eps=1e-5)
    if use.axis.dim != 0:
        return None
    normalised = use.once("n", lambda: F.group_norm(inputs.detach(), groups, None, None, eps))
    return _scale_and_shift(use, normalised, weight, bias, _channel_shape(inputs))


@register_rule(F.batch_norm)
def batch_norm(use: Use) -> list[tuple[Tensor, Factor]] | None:
    """Scale and shift per channel, with the running statistics (eval mode)."""
    names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum")
    values = use.arguments(*names, "eps", training=False, eps=1e-5)
    inputs, mean, variance, weight, bias, training, _, eps = values
    if training or use.axis.dim != 0:
        return None
    data = inputs.detach()
    normalised = use.once(
        "n", lambda: F.batch_norm(data, mean, variance, None, None, False, 0.0, eps)
    )
    return _scale_and_shift(use, normalised, weight, bias, _channel_shape(inputs))


@register_rule(F.instance_norm)
def instance_norm(use: Use) -> list[tuple[Tensor, Factor]] | None:
    """Scale and shift per channel, with each sample's own statistics or the running ones."""
    names = ("input", "running_mean", "running_var", "weight", "bias", "use_input_stats")
    values = use.arguments(*names, "momentum", "eps", use_input_stats=True, eps=1e-5)
    inputs, mean, variance, weight, bias, own, _, eps = values
    if use.axis.dim != 0:
        return None
    if own:
        mean = variance = None
    data = inputs.detach()
    normalised = use.once(
        "n", lambda: F.instance_norm(data, mean, variance, None, None, own, 0.0, eps)
    )
    return _scale_and_shift(use, normalised, weight, bias, _channel_shape(inputs))
