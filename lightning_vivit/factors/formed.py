"""Factor of a weight whose rows a contraction formed, kept for sums of rows that come later."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_vivit.factors.base import Factor, in_parameter_order

_WIDTH = 256  # columns of rows that one thread multiplies at a time


class RowBlock(NamedTuple):
    """Rows restricted to some outputs of one group of a weight."""

    group: int
    start: int  # the first output
    rows: Tensor  # [N, D, a*B] for a outputs from `start` on


class Formed(Factor):
    """Rows of an outer product in blocks of outputs.

    A sum of K rows costs K*N*D*P multiplications, and K*N*L*P without the rows. Takes N*D*P
    entries in place of N*D*G*A*L + N*G*B*L; see `planning.worth_keeping`.

    Attributes:
        blocks: The rows; together they cover every group and output once.
        sizes: (G, A, B) of the weight.
        shape: Shape of the parameter.
        transposed: False if the parameter's memory order is (G, A, B), True if it is (G, B, A).
        taps: Order of the B inputs, see `in_parameter_order`.
    """

    def __init__(
        self,
        blocks: list[RowBlock],
        sizes: tuple[int, int, int],
        shape: torch.Size,
        transposed: bool = False,
        taps: int = 1,
    ) -> None:
        """Keep the rows.

        Args:
            blocks: Rows of all groups and outputs.
            sizes: (G, A, B).
            shape: Shape of the parameter, G*A*B entries.
            transposed: Whether the parameter is stored as (G, B, A).
            taps: Order of the B inputs, see `in_parameter_order`.
        """
        self.blocks = blocks
        self.sizes = sizes
        self.shape = shape
        self.transposed = transposed
        self.taps = taps

    @property
    def num_samples(self) -> int:
        """Number of samples N."""
        return self.blocks[0].rows.shape[0]

    @property
    def num_columns(self) -> int:
        """Number of columns D per sample."""
        return self.blocks[0].rows.shape[1]

    @property
    def size(self) -> int:
        """Bytes of the rows."""
        return sum(block.rows.numel() * block.rows.element_size() for block in self.blocks)

    def narrow(self, start: int, stop: int) -> Formed:
        """The factor of samples start..stop-1."""
        blocks = [block._replace(rows=block.rows[start:stop]) for block in self.blocks]
        return Formed(blocks, self.sizes, self.shape, self.transposed, self.taps)

    def rows(self) -> Tensor:
        """The rows [N, D, P]."""
        n, d = self.num_samples, self.num_columns
        whole = self._assembled([block.rows.flatten(0, 1) for block in self.blocks])
        return whole.reshape(n, d, -1)

    def weighted_sum(self, coefficients: Tensor) -> Tensor:
        """Sum of the rows with weights, [K, *shape]."""
        n, d, k = coefficients.shape
        weights = coefficients.to(self.blocks[0].rows.dtype).reshape(n * d, k).T
        parts = [_multiply(weights, block.rows.flatten(0, 1)) for block in self.blocks]
        return self._assembled(parts)

    def _assembled(self, parts: list[Tensor]) -> Tensor:
        """Parts [R, a*B] of all blocks in the parameter's memory order, [R, *shape]."""
        groups, a, b = self.sizes
        whole = parts[0].new_empty(parts[0].shape[0], groups, a, b)
        for block, part in zip(self.blocks, parts, strict=True):
            count = part.shape[1] // b
            place = whole[:, block.group, block.start : block.start + count]
            place.copy_(part.reshape(-1, count, b))
        whole = whole.transpose(2, 3) if self.transposed else whole
        return in_parameter_order(whole.flatten(1), self.shape, self.taps)


def _multiply(weights: Tensor, rows: Tensor) -> Tensor:
    """Weights [K, R] times rows [R, W] with K small, [K, W].

    As one product it would be up to twice as slow on a CPU.
    """
    (k, r), width = weights.shape, rows.shape[1]
    even = width // _WIDTH * _WIDTH
    if even == 0 or rows.device.type != "cpu":
        return weights @ rows
    pieces = rows[:, :even].view(r, -1, _WIDTH).transpose(0, 1)  # [pieces, R, _WIDTH]
    found = torch.bmm(weights.expand(pieces.shape[0], k, r), pieces)
    product = weights.new_empty(k, width)
    product[:, :even] = found.transpose(0, 1).reshape(k, even)
    product[:, even:] = weights @ rows[:, even:]
    return product
