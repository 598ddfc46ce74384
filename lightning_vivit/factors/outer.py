"""Factor of a weight that multiplies inputs: a sum over positions of outer products."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_vivit.factors.base import Factor


class OuterProduct(Factor):
    """Rows (n, c) = sum over positions l of columns[n, c, g, :, l] times inputs[n, g, :, l]^T.

    Linear layers, convolutions after unfold (L patches), embeddings (one-hot inputs), matrix
    products and two-operand einsums all have this form. Nothing of size P is stored.

    Attributes:
        columns: [N, D, G, A, L], the backpropagated side.
        inputs: [N, G, B, L], the side that all columns share.
        shape: Shape of the parameter, G*A*B entries.
        transposed: False if the parameter's memory order is (G, A, B), True if it is (G, B, A).
    """

    def __init__(
        self, columns: Tensor, inputs: Tensor, shape: torch.Size, transposed: bool = False
    ) -> None:
        """Keep both sides.

        Args:
            columns: [N, D, G, A, L].
            inputs: [N, G, B, L].
            shape: Shape of the parameter.
            transposed: Whether the parameter is stored as (G, B, A).
        """
        self.columns = columns
        self.inputs = inputs
        self.shape = shape
        self.transposed = transposed

    @property
    def num_samples(self) -> int:
        """Number of samples N."""
        return self.columns.shape[0]

    @property
    def num_columns(self) -> int:
        """Number of columns D per sample."""
        return self.columns.shape[1]

    def narrow(self, start: int, stop: int) -> OuterProduct:
        """The factor of samples start..stop-1."""
        return OuterProduct(
            self.columns[start:stop], self.inputs[start:stop], self.shape, self.transposed
        )

    def rows(self) -> Tensor:
        """The rows [N, D, P]."""
        out = "ndgba" if self.transposed else "ndgab"
        rows = torch.einsum(f"ndgal,ngbl->{out}", self.columns, self.inputs)
        return rows.reshape(self.num_samples, self.num_columns, -1)

    def weighted_sum(self, coefficients: Tensor) -> Tensor:
        """Sum of the rows with weights, [K, *shape]."""
        side = torch.einsum("ndk,ndgal->nkgal", coefficients, self.columns)
        out = "kgba" if self.transposed else "kgab"
        total = torch.einsum(f"nkgal,ngbl->{out}", side, self.inputs)
        return total.reshape(coefficients.shape[2], *self.shape)

    def joins(self, other: Factor) -> bool:
        """Whether `other` is a further use of the same weight that can be joined along L."""
        return (
            isinstance(other, OuterProduct)
            and self.transposed == other.transposed
            and self.columns.shape[:4] == other.columns.shape[:4]
            and self.inputs.shape[:3] == other.inputs.shape[:3]
        )

    def join(self, others: list[OuterProduct]) -> OuterProduct:
        """One factor for several uses of a weight: their positions one after the other."""
        columns = torch.cat([self.columns, *(other.columns for other in others)], dim=4)
        inputs = torch.cat([self.inputs, *(other.inputs for other in others)], dim=3)
        return OuterProduct(columns, inputs, self.shape, self.transposed)


def add_uses(uses: list[Factor]) -> Factor:
    """One factor for a parameter that is used several times (tied weights, repeated modules).

    Cross terms between the uses belong to the kernel, so the rows are summed before anything is
    contracted: along the positions where the uses have the same form, as dense rows otherwise.

    Args:
        uses: The factors of all uses of one parameter.

    Returns:
        The factor of the sum.
    """
    from lightning_vivit.factors.base import Dense

    first, *rest = uses
    if not rest:
        return first
    if isinstance(first, OuterProduct) and all(first.joins(other) for other in rest):
        return first.join([other for other in rest if isinstance(other, OuterProduct)])
    total = first.rows().clone()
    for other in rest:
        total += other.rows()
    return Dense(total, first.shape)
