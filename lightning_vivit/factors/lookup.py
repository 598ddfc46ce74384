"""Factor of an embedding: each column belongs to the row of one token."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_vivit.factors.factor import Factor
from lightning_vivit.factors.orders import multiply_rows

_CHUNK_ENTRIES = 1 << 24  # entries of temporary rows held at once (64 MB in float32)


class Lookup(Factor):
    """Rows (n, c) = sum over positions l of columns[n, c, :, l] in the row of token[n, l].

    The rows of a large vocabulary are never formed: only tokens of the batch count, and they are
    taken a few at a time.

    Attributes:
        columns: [N, D, L, E].
        tokens: [N, L], -1 where nothing is added (padding).
        shape: [V, E].
    """

    def __init__(self, columns: Tensor, tokens: Tensor, shape: torch.Size) -> None:
        """Keep columns and tokens.

        Args:
            columns: [N, D, L, E].
            tokens: [N, L], -1 where nothing is added.
            shape: [V, E].
        """
        self.columns = columns
        self.tokens = tokens
        self.shape = shape

    @property
    def num_samples(self) -> int:
        """Number of samples N."""
        return self.columns.shape[0]

    @property
    def num_columns(self) -> int:
        """Number of columns D per sample."""
        return self.columns.shape[1]

    def narrow(self, start: int, stop: int) -> Lookup:
        """The factor of samples start..stop-1."""
        return Lookup(self.columns[start:stop], self.tokens[start:stop], self.shape)

    def rows(self) -> Tensor:
        """The rows [N, D, V*E]; for small vocabularies and tied weights."""
        every = torch.arange(self.shape[0], device=self.tokens.device)
        return self._rows_of(every).flatten(2)

    def weighted_sum(self, coefficients: Tensor) -> Tensor:
        """Sum of the rows with weights, [K, V, E]."""
        n, d, length, width = self.columns.shape
        k = coefficients.shape[2]
        weights = coefficients.transpose(1, 2).to(self.columns.dtype)
        side = torch.bmm(weights, self.columns.reshape(n, d, -1)).reshape(n, k, length, width)
        total = self.columns.new_zeros(k, self.shape[0] + 1, width)
        where = self.tokens.reshape(1, -1, 1).remainder(self.shape[0] + 1)  # -1: the spare row
        flat = side.transpose(0, 1).reshape(k, n * length, width)
        total.scatter_add_(1, where.expand(k, -1, width), flat)
        return total[:, :-1]

    def kernel(self, other: Lookup, mode: str) -> Tensor:
        """Products of all rows with those of another factor of the same weight.

        Args:
            other: The right side; the same object to use the symmetry.
            mode: ``full``, ``trace`` or ``diagonal``.

        Returns:
            [N, C, M, D], [N, M] or [N, M, D].
        """
        shared = self.tokens.unique()
        if other is not self:
            shared = shared[torch.isin(shared, other.tokens)]
        shared = shared[shared >= 0]
        rows = self.num_samples * self.num_columns + other.num_samples * other.num_columns
        step = max(1, _CHUNK_ENTRIES // max(1, rows * self.shape[1]))
        total: Tensor | None = None
        for some in shared.split(step) if shared.numel() else ():
            left = self._rows_of(some).flatten(2)
            right = left if other is self else other._rows_of(some).flatten(2)
            part = multiply_rows(left, right, mode)
            total = part if total is None else total.add_(part)
        if total is None:  # no token in common
            left, right = self.columns[:, :, 0], other.columns[:, :, 0]
            total = multiply_rows(left, right, mode).zero_()
        return total

    def _rows_of(self, tokens: Tensor) -> Tensor:
        """Rows restricted to some tokens (sorted, unique), [N, D, U, E]."""
        n, d, length, width = self.columns.shape
        count = tokens.numel()
        place = torch.searchsorted(tokens, self.tokens).clamp(max=count - 1)
        place = torch.where(tokens[place] == self.tokens, place, count)  # others: a spare row
        rows = self.columns.new_zeros(n, d, count + 1, width)
        where = place[:, None, :, None].expand(n, d, length, width)
        rows.scatter_add_(2, where, self.columns)
        return rows[:, :, :count]
