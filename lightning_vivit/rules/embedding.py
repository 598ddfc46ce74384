"""Rule for `torch.nn.functional.embedding`: a linear map of one-hot inputs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_vivit.factors import Factor, Lookup
from lightning_vivit.rules.registry import Use, register_rule


@register_rule(F.embedding)
def embedding(use: Use) -> list[tuple[Tensor, Factor]] | None:
    """Weight [V, E]: each column is added to the rows of the tokens that it came from."""
    names = ("input", "weight", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq")
    tokens, weight, padding_idx, max_norm, _, scale, *_ = use.arguments(*names, "sparse")
    if max_norm is not None or scale or use.axis.dim >= tokens.ndim:
        return None
    n, d = use.columns.shape[:2]
    size, width = weight.shape
    columns = use.columns.reshape(n, d, -1, width)  # [N, D, L, E]
    index = use.axis.split(tokens).reshape(n, -1)  # [N, L]
    if padding_idx is not None:
        index = torch.where(index == padding_idx % size, -1, index)
    return [(weight, Lookup(columns, index, torch.Size(weight.shape)))]
