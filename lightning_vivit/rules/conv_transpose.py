"""Rule for transposed convolutions: inputs and columns change their roles."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_vivit.factors import Factor, OuterProduct, Shift
from lightning_vivit.problem.forms.windows import as_tuple, patches
from lightning_vivit.rules.registry import Use, register_rule


@register_rule(F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
def transposed_convolution(use: Use) -> list[tuple[Tensor, Factor]] | None:
    """Weight [I, O/g, *k]: patches of the columns times the input at every input position."""
    names = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
    maps, weight, bias, stride, padding, _, groups, dilation = use.arguments(
        *names, stride=1, padding=0, output_padding=0, groups=1, dilation=1
    )
    rank = weight.ndim - 2
    if maps.ndim != rank + 2 or use.axis.dim != 0:
        return None
    kernel = tuple(weight.shape[2:])
    pads = [(size, size) for size in as_tuple(padding, rank)]
    columns = use.columns  # [N, D, T, O, *out]
    n, d, count, channels = columns.shape[:4]
    found: list[tuple[Tensor, Factor]] = []
    if use.wants(weight):
        inputs = use.axis.split(maps.detach().flatten(2))  # [N, T, I, L]
        depth, length = inputs.shape[2:]
        inputs = inputs.transpose(1, 2).reshape(n, groups, depth // groups, count * length)
        side = patches(
            columns.reshape(n * d * count, channels, *columns.shape[4:]),
            kernel,
            as_tuple(stride, rank),
            pads,
            as_tuple(dilation, rank),
        )  # [N*D*T, O, *k, *windows]
        for place, size in enumerate(maps.shape[2:]):  # output padding adds windows that no
            side = side.narrow(2 + rank + place, 0, size)  # input produced
        taps = torch.Size(kernel).numel()
        side = side.reshape(n, d, count, groups, channels // groups * taps, length)
        side = side.movedim(2, 4).flatten(4)  # [N, D, G, A, T*L]
        factor = OuterProduct(side, inputs, weight.shape, transposed=True)
        found.append((weight, factor))
    if use.wants(bias):
        flat = columns.reshape(n, d, count, channels, -1).transpose(2, 3).flatten(3)
        found.append((bias, Shift(flat, bias.shape)))
    return found
