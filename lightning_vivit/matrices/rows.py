"""Matrices that are made of rows: sums of J_n^T S_n S_n^T J_n over the samples."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from lightning_vivit.jacobian.live import LivePart, Space, is_own
from lightning_vivit.losses import SampleLoss
from lightning_vivit.matrices.matrix import Matrix


class RowMatrix(Matrix):
    """A = scale * sum_n J_n^T S_n S_n^T J_n, from the products with S_n S_n^T and with S_n."""

    @abstractmethod
    def root(self, loss: SampleLoss) -> Tensor:
        """Roots S_n [N, D, M] in the outputs."""

    def product(self, loss: SampleLoss, vectors: Tensor, overwrite: bool = False) -> Tensor:
        """S_n S_n^T times vectors; by default the root is formed.

        Args:
            loss: Of the samples.
            vectors: [N, D, K].
            overwrite: Whether the memory of the vectors may be taken for the result.

        Returns:
            [N, D, K].
        """
        root = self.root(loss)
        return root @ (root.transpose(1, 2) @ vectors)

    def multiply(self, part: LivePart, space: Space, vectors: Tensor) -> Tensor:
        """J^T S S^T J v; see `Matrix.multiply`. Costs one J v and one J^T w for each vector."""
        pushed = part.push(space, vectors)
        weighed = self.product(part.loss, pushed, overwrite=is_own(pushed, vectors))
        del pushed
        return part.pull(space, weighed).mul_(part.scale)

    def quadratic(self, part: LivePart, space: Space, vectors: Tensor) -> Tensor:
        """v^T A v from J v, half a product; see `Matrix.quadratic`."""
        return part.scale * self.curvatures(part.loss, part.push(space, vectors)).sum(0)

    def curvatures(self, loss: SampleLoss, pushed: Tensor) -> Tensor:
        """Every sample's curvature along v from J_n v; see `Matrix.curvatures`."""
        return self.product(loss, pushed).mul_(pushed).sum(1, dtype=torch.float64)
