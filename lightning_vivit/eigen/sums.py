"""Products and norms of long vectors, whose parts are added in float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_CHUNK = 1 << 16  # entries of a vector that are summed in its own dtype


def inner_products(first: Tensor, second: Tensor) -> Tensor:
    """Products of all rows of two matrices, summed in float64.

    Args:
        first: [m, P].
        second: [b, P].

    Returns:
        [m, b]. A sum of millions of float32 numbers is not accurate enough for a residual of 1e-4.
    """
    if first.shape[1] <= _CHUNK:
        return (first @ second.T).double()
    total = torch.zeros(first.shape[0], second.shape[0], dtype=torch.float64, device=first.device)
    for left, right in zip(first.split(_CHUNK, dim=1), second.split(_CHUNK, dim=1), strict=True):
        total += left @ right.T
    return total


def normalise(vectors: Tensor) -> Tensor:
    """Divide K vectors [K, P] by their norms, in place; returns these, [K]."""
    norms = [max(norm(vector), torch.finfo(vectors.dtype).tiny) for vector in vectors]
    found = vectors.new_tensor(norms)
    vectors /= found.unsqueeze(1)
    return found


def norm(vector: Tensor) -> float:
    """Norm of a vector [P]."""
    if vector.numel() <= _CHUNK:
        return math.sqrt(float(vector @ vector))
    squares = torch.stack([part @ part for part in vector.split(_CHUNK)])
    return math.sqrt(float(squares.sum(dtype=torch.float64)))
