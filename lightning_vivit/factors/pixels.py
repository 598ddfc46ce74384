"""Kernel of the patches that a convolution sees, as sums of the kernel of its pixels.

    sum over taps k and channels i of x[n, i, l + k] x[m, i, p + k]

needs the scalar products of pixels l + k and p + k over the channels only once, though up to as
many taps use them as the convolution's kernel has, so there is that much less to multiply. The sums
over taps are made for one axis after the other, each of them of a few shifted blocks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

_CHANNEL = 1.4  # cost of a multiplication, relative to those of patches with patches
_SUMMAND = 40.0  # of adding one entry to another


@dataclass(frozen=True)
class Axis:
    """How a convolution walks along one axis.

    Attributes:
        size: Pixels.
        out: Positions of the kernel.
        taps: Entries of the kernel.
        stride: Pixels between two positions.
        before: Zeros before the first pixel.
        dilation: Pixels between two taps.
    """

    size: int
    out: int
    taps: int
    stride: int
    before: int
    dilation: int

    def spans(self) -> list[tuple[int, int, int]]:
        """For each tap that meets pixels: first and last + 1 position where, and its first pixel.

        Those with most positions come first.
        """
        found = []
        for tap in range(self.taps):
            offset = tap * self.dilation - self.before
            start = max(0, -(offset // self.stride))
            stop = min(self.out, (self.size - 1 - offset) // self.stride + 1)
            if start < stop:
                found.append((start, stop, start * self.stride + offset))
        return sorted(found, key=lambda span: span[0] - span[1])


@dataclass(frozen=True)
class Pixels:
    """The maps that a convolution without groups sees.

    Attributes:
        maps: [N, I, *spatial], detached.
        axes: How it walks along the spatial axes.
    """

    maps: Tensor
    axes: tuple[Axis, ...]

    @property
    def pays(self) -> bool:
        """Whether the kernel of patches is cheaper from pixels than from patches."""
        positions = math.prod(axis.out for axis in self.axes)
        taps = math.prod(axis.taps for axis in self.axes)
        return self.cost < positions**2 * taps * self.maps.shape[1]

    @property
    def cost(self) -> float:
        """Of the kernel of a pair of samples, in multiplications of patches with patches."""
        sizes = [axis.size for axis in self.axes]
        total = _CHANNEL * math.prod(sizes) ** 2 * self.maps.shape[1]
        for place in reversed(range(len(sizes))):
            sizes[place] = self.axes[place].out
            total += _SUMMAND * self.axes[place].taps * math.prod(sizes) ** 2
        return total

    def matches(self, other: Pixels | None) -> bool:
        """Whether others are walked in the same way, so that there is a kernel with them."""
        return other is not None and self.axes == other.axes

    def narrow(self, start: int, stop: int) -> Pixels:
        """Those of samples start..stop-1."""
        return replace(self, maps=self.maps[start:stop])

    def kernel(self, other: Pixels) -> Tensor:
        """Kernel of the patches, summed over channels and taps.

        Args:
            other: Maps of the same convolution, M samples; the fewer, the more stays in a cache.

        Returns:
            [N, L, M, L] for L positions.
        """
        rank = len(self.axes)
        n, channels = self.maps.shape[:2]
        m = other.maps.shape[0]
        spatial = tuple(self.maps.shape[2:])
        left = self.maps.movedim(1, -1).reshape(-1, channels)
        right = other.maps.movedim(0, -1).reshape(channels, -1)  # samples last: long rows to add
        block = (left @ right).view(n, *spatial, *spatial, m)
        for place in reversed(range(rank)):
            block = _over_taps(block, self.axes[place], (1 + place, 1 + rank + place))
        positions = math.prod(axis.out for axis in self.axes)
        block = block.view(n, positions, positions, m).permute(3, 0, 1, 2).contiguous()
        return block.permute(1, 2, 0, 3)  # a matrix for each pair of samples


def _over_taps(block: Tensor, axis: Axis, dims: Sequence[int]) -> Tensor:
    """Sum over the taps of one axis, which the block has for both of its sides.

    Args:
        block: The kernel of pixels along this axis.
        axis: The axis.
        dims: Its two places in the block.

    Returns:
        The kernel of positions along this axis, contiguous.
    """
    shape = list(block.shape)
    for dim in dims:
        shape[dim] = axis.out
    total: Tensor | None = None
    for start, stop, first in axis.spans():
        seen = block
        for dim in dims:
            last = first + (stop - start - 1) * axis.stride
            seen = _cut(seen, dim, first, last + 1, axis.stride)
        if total is None and (start, stop) == (0, axis.out):
            total = torch.clone(seen, memory_format=torch.contiguous_format)
            continue
        if total is None:
            total = block.new_zeros(shape)
        place = total
        for dim in dims:
            place = place.narrow(dim, start, stop - start)
        place += seen
    return block.new_zeros(shape) if total is None else total


def _cut(block: Tensor, dim: int, start: int, stop: int, step: int) -> Tensor:
    return block[(*(slice(None),) * dim, slice(start, stop, step))]
