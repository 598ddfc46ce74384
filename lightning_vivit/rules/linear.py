"""Rule for `torch.nn.functional.linear`, on vectors and on sequences of any rank."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from lightning_vivit.factors import Factor, OuterProduct, Shift
from lightning_vivit.rules.registry import Use, register_rule


@register_rule(F.linear)
def linear(use: Use) -> list[tuple[Tensor, Factor]] | None:
    """Weight: columns times inputs at every position; bias: columns."""
    inputs, weight, bias = use.arguments("input", "weight", "bias")
    if weight.ndim != 2 or inputs.ndim < 2:
        return None
    columns = use.columns.flatten(2, -2)  # [N, D, L, O]
    columns = columns.transpose(2, 3)  # [N, D, O, L]
    found: list[tuple[Tensor, Factor]] = []
    if use.wants(weight):
        samples = use.axis.split(inputs.detach())  # [N, *positions, I]
        samples = samples.flatten(1, -2).transpose(1, 2)  # [N, I, L]
        factor = OuterProduct(columns.unsqueeze(2), samples.unsqueeze(1), weight.shape)
        found.append((weight, factor))
    if use.wants(bias):
        found.append((bias, Shift(columns, bias.shape)))
    return found
