"""Rows of a matrix that grows, in blocks of memory that malloc keeps from search to search."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_vivit.machine.heap import HEAP_BLOCK

_BLOCK = HEAP_BLOCK - (4 << 20)  # bytes
_COLUMNS = 1 << 20  # that are turned at a time


class Rows:
    """Rows of equal width, the first of which are in use.

    In one piece a search with 1000 classes spent a twentieth of its time on fresh pages.
    """

    def __init__(self, width: int, dtype: torch.dtype, device: torch.device | str) -> None:
        """Start without rows.

        Args:
            width: Entries of a row.
            dtype: Of the entries.
            device: Where they lie.
        """
        self.width, self._dtype, self._device = width, dtype, device
        self._height = max(1, _BLOCK // max(1, width * dtype.itemsize))  # rows of a block
        self._blocks: list[Tensor] = []

    def places(self, start: int, count: int) -> list[Tensor]:
        """Rows start..start+count-1, to be read or written."""
        while len(self._blocks) * self._height < start + count:
            new = torch.empty(self._height, self.width, dtype=self._dtype, device=self._device)
            self._blocks.append(new)
        chosen = range(start, start + count)
        return [self._blocks[row // self._height][row % self._height] for row in chosen]

    def combine(self, coefficients: Tensor) -> Tensor:
        """Sums of the first m rows with coefficients [k, m], [k, width]."""
        pieces = coefficients.split(self._height, dim=1)
        total = coefficients.new_zeros(coefficients.shape[0], self.width)
        for piece, block in zip(pieces, self._blocks, strict=False):
            total.addmm_(piece, block[: piece.shape[1]])
        return total

    def turn(self, coefficients: Tensor) -> None:
        """Replace the first k rows by sums of the first m, coefficients [k, m]."""
        used = coefficients.shape[1]
        if self.width == 0:
            return
        for first in range(0, self.width, _COLUMNS):  # no second matrix in memory
            some = slice(first, first + _COLUMNS)
            joined = torch.cat([block[:, some] for block in self._blocks])[:used]
            parts = (coefficients @ joined).split(self._height)
            for part, block in zip(parts, self._blocks, strict=False):
                block[: part.shape[0], some] = part


__all__ = ["Rows"]
