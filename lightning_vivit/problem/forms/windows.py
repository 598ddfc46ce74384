"""Patches of 1-, 2- and 3-dimensional maps (an unfold that also knows 1 and 3 dimensions)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def as_tuple(value: int | Sequence[int], rank: int) -> tuple[int, ...]:
    """One value for each spatial dimension."""
    if isinstance(value, int):
        return (value,) * rank
    values = tuple(value)
    return values * rank if len(values) == 1 else values


def patches(
    maps: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
) -> Tensor:
    """All patches that a convolution kernel sees.

    Args:
        maps: [B, C, *spatial].
        kernel: Kernel sizes.
        stride: Strides.
        padding: Zeros before and after, for each dimension.
        dilation: Dilations.

    Returns:
        [B, C, *kernel, *out], a view where no padding is needed.
    """
    rank = len(kernel)
    if any(before or after for before, after in padding):
        flat = [size for pair in reversed(list(padding)) for size in pair]
        maps = F.pad(maps, flat)
    lead = maps.shape[:2]
    spatial = maps.shape[2:]
    steps = maps.stride()
    out = [
        (size - d * (k - 1) - 1) // s + 1
        for size, k, s, d in zip(spatial, kernel, stride, dilation, strict=True)
    ]
    strides = [
        *steps[:2],
        *(steps[2 + axis] * dilation[axis] for axis in range(rank)),
        *(steps[2 + axis] * stride[axis] for axis in range(rank)),
    ]
    return maps.as_strided([*lead, *kernel, *out], strides)
