"""Scales and shifts that are combined with data by broadcasting (shared by several rules)."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_vivit.factors import Dense
from lightning_vivit.rules.registry import Use


def reduce_columns(use: Use, products: Tensor, shape: tuple[int, ...], target: Tensor) -> Dense:
    """Sum columns over the axes along which a parameter was broadcast.

    Args:
        use: The use; its sample axis tells where the positions T are.
        products: [N, D, *output shape], columns times the local derivative.
        shape: Shape of the parameter as it broadcasts against the output, 1 on the sample axis.
        target: The parameter.

    Returns:
        Dense rows of the parameter.
    """
    rank = products.ndim - 2
    aligned = (1,) * (rank - len(shape)) + tuple(shape)
    axes = [2 + dim for dim, size in enumerate(aligned) if size == 1]
    rows = products.sum(axes) if axes else products
    n, d = products.shape[:2]
    return Dense(rows.reshape(n, d, -1), torch.Size(target.shape))


def broadcasts_over_samples(use: Use, shape: tuple[int, ...]) -> bool:
    """Whether a parameter of this shape is the same for every sample and position on the axis."""
    rank = use.columns.ndim - 2
    place = use.axis.dim - (rank - len(shape))
    return place < 0 or shape[place] == 1
