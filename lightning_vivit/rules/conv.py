"""Rule for convolutions in 1, 2 and 3 dimensions with stride, padding, dilation and groups."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_vivit.factors import Factor, OuterProduct, Shift
from lightning_vivit.problem.forms.windows import as_tuple, patches
from lightning_vivit.rules.registry import Use, register_rule

_ADJACENT = 24  # entries of a patch that lie together, from which they are copied fast


@register_rule(F.conv1d, F.conv2d, F.conv3d)
def convolution(use: Use) -> list[tuple[Tensor, Factor]] | None:
    """Weight: columns times input patches at every output position; bias: columns."""
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    maps, weight, bias, stride, padding, dilation, groups = use.arguments(
        *names, stride=1, padding=0, dilation=1, groups=1
    )
    rank = weight.ndim - 2
    if maps.ndim != rank + 2 or use.axis.dim != 0:
        return None
    kernel = tuple(weight.shape[2:])
    stride, dilation = as_tuple(stride, rank), as_tuple(dilation, rank)
    pads = _pads(padding, kernel, dilation, rank)
    columns = use.columns  # [N, D, T, O, *out]
    n, d, count, channels = columns.shape[:4]
    columns = columns.reshape(n, d, count, channels, -1).transpose(2, 3).flatten(3)
    found: list[tuple[Tensor, Factor]] = []
    if use.wants(weight):
        channels_last = _are_channels_last(maps, kernel, groups, count)

        def unfold() -> Tensor:
            seen = patches(maps.detach(), kernel, stride, pads, dilation)  # [N*T, C, *k, *out]
            if channels_last:  # in memory [N, L, B] with B = (*k, C), which is copied fastest
                seen = seen.permute(0, 4, 5, 2, 3, 1).flatten(3).flatten(1, 2)
                return seen.transpose(1, 2).unsqueeze(1)
            batch, depth = seen.shape[:2]
            taps = torch.Size(kernel).numel()
            seen = seen.reshape(batch, groups, depth // groups * taps, -1)  # [N*T, G, B, L]
            seen = use.axis.split(seen)  # [N, T, G, B, L]
            return seen.movedim(1, 3).flatten(3) if count > 1 else seen[:, 0]

        seen = use.once("patches", unfold)
        side = columns.reshape(n, d, groups, channels // groups, -1)
        taps = torch.Size(kernel).numel() if channels_last else 1
        found.append((weight, OuterProduct(side, seen, weight.shape, taps=taps)))
    if use.wants(bias):
        found.append((bias, Shift(columns, bias.shape)))
    return found


def _are_channels_last(maps: Tensor, kernel: tuple[int, ...], groups: int, count: int) -> bool:
    """Whether patches are taken from maps with the channels last in memory, as they are there."""
    if maps.ndim != 4 or groups > 1 or count > 1 or maps.is_contiguous():
        return False
    channels = maps.shape[1]
    formatted = maps.is_contiguous(memory_format=torch.channels_last)
    return formatted and kernel[1] * channels >= _ADJACENT


def _pads(
    padding: int | str | tuple[int, ...],
    kernel: tuple[int, ...],
    dilation: tuple[int, ...],
    rank: int,
) -> list[tuple[int, int]]:
    """Zeros before and after each dimension, also for 'same' and 'valid'."""
    if padding == "valid":
        return [(0, 0)] * rank
    if padding == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    assert not isinstance(padding, str)
    return [(size, size) for size in as_tuple(padding, rank)]
