"""Factor of a weight that multiplies inputs: a sum over positions of outer products."""

from __future__ import annotations

from copy import copy

import torch
from torch import Tensor

from lightning_vivit.factors.factor import Dense, Factor, Shift, in_own_order, in_parameter_order

_LANES = 16  # numbers of float32 in the widest vector
_SIDE_ENTRIES = 3 << 21  # of weighted columns: less than malloc's largest block of reused memory


class OuterProduct(Factor):
    """Rows (n, c) = sum over positions l of columns[n, c, g, :, l] times inputs[n, g, :, l]^T.

    Linear layers, convolutions after unfold (L patches), embeddings (one-hot inputs), matrix
    products and two-operand einsums all have this form. Nothing of size P is stored.

    Attributes:
        columns: [N, D, G, A, L], the backpropagated side.
        inputs: [N, G, B, L], the side that all columns share.
        shape: Shape of the parameter, G*A*B entries.
        transposed: False if the parameter's memory order is (G, A, B), True if it is (G, B, A).
        offset: 1.0 if the kernel includes that of a bias with the same columns, which acts like
            one more input that is constantly 1; the rows are those of the weight alone.
        taps: More than 1 if the B inputs are in the order (taps, B/taps), and the parameter's are
            not, see `in_parameter_order`; not with `transposed`.
    """

    def __init__(
        self,
        columns: Tensor,
        inputs: Tensor,
        shape: torch.Size,
        transposed: bool = False,
        offset: float = 0.0,
        taps: int = 1,
    ) -> None:
        """Keep both sides.

        Args:
            columns: [N, D, G, A, L].
            inputs: [N, G, B, L].
            shape: Shape of the parameter.
            transposed: Whether the parameter is stored as (G, B, A).
            offset: 1.0 to include the kernel of a bias of the same use, else 0.0.
            taps: Order of the inputs, see the attribute.
        """
        self.columns = columns
        self.inputs = inputs
        self.shape = shape
        self.transposed = transposed
        self.offset = offset
        self.taps = taps

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
            self.columns[start:stop],
            self.inputs[start:stop],
            self.shape,
            self.transposed,
            self.offset,
            self.taps,
        )

    def rows(self) -> Tensor:
        """The rows [N, D, P]."""
        rows = in_parameter_order(self._own_rows(), self.shape, self.taps)
        return rows.reshape(self.num_samples, self.num_columns, -1)

    def _own_rows(self) -> Tensor:
        out = "ndgba" if self.transposed else "ndgab"
        rows = torch.einsum(f"ndgal,ngbl->{out}", self.columns, self.inputs)
        return rows.reshape(self.num_samples, self.num_columns, -1)

    def write_rows(self, out: Tensor) -> None:
        """Write all rows [N, D, P], with the inputs' entries in their own order."""
        n, d, groups, a, length = self.columns.shape
        b = self.inputs.shape[2]
        if groups > 1 or self.transposed:
            out.copy_(self._own_rows())
            return
        inputs = self.inputs[:, 0]
        place = out.view(n, d * a, b)
        if n > 1 and self.columns.stride(0) == 0:  # the same for all samples
            shared = self.columns[0].reshape(d * a, length)
            if inputs.stride(1) == 1:
                torch.bmm(shared.expand(n, d * a, length), inputs.transpose(1, 2), out=place)
            else:  # one large product
                product = shared @ inputs.reshape(n * b, length).T
                place.copy_(product.view(d * a, n, b).transpose(0, 1))
            return
        side = self.columns.reshape(n, d * a, length)
        if b % _LANES and side.shape[1] % _LANES == 0:
            # a product whose rows do not fill the processor's vectors is slower
            place.copy_(torch.bmm(inputs, side.transpose(1, 2)).transpose(1, 2))
        elif place.is_contiguous():
            torch.bmm(side, inputs.transpose(1, 2), out=place)
        else:  # into memory with gaps torch would multiply one sample at a time
            place.copy_(torch.bmm(side, inputs.transpose(1, 2)))

    def weighted_sum(self, coefficients: Tensor) -> Tensor:
        """Sum of the rows with weights, [K, *shape]."""
        n, d, groups, a, length = self.columns.shape
        k, b = coefficients.shape[2], self.inputs.shape[2]
        weights = coefficients.transpose(1, 2).to(self.columns.dtype)  # [N, K, D]
        total = self.columns.new_empty(k, groups, a, b)
        step = max(1, _SIDE_ENTRIES // max(1, n * a * length))
        for group in range(groups):
            columns = self.columns[:, :, group]  # [N, D, A, L]
            right = self.inputs[:, group].transpose(1, 2).reshape(n * length, b)
            for start in range(0, k, step):
                some = weights[:, start : start + step]
                if columns.stride(2) == 1:  # in memory [N, D, L, A], as linear layers leave them
                    side = torch.bmm(some, columns.transpose(2, 3).reshape(n, d, -1))
                    side = side.view(n, -1, length, a).transpose(1, 2)
                    left = side.reshape(n * length, -1).T
                else:
                    side = torch.bmm(some, columns.reshape(n, d, -1)).view(n, -1, a, length)
                    left = side.permute(1, 2, 0, 3).reshape(-1, n * length)
                place = total[start : start + step, group]
                if groups == 1:
                    torch.mm(left, right, out=place.view(-1, b))
                else:
                    place.copy_((left @ right).view(-1, a, b))
        if self.transposed:
            total = total.transpose(2, 3)
        return in_parameter_order(total.flatten(1), self.shape, self.taps)

    def products(self, vectors: Tensor) -> Tensor:
        """Scalar products of all rows with vectors [K, *shape]: [N, D, K]."""
        groups, a = self.columns.shape[2:4]
        k, b = vectors.shape[0], self.inputs.shape[2]
        if self.transposed:
            parts = vectors.reshape(k, groups, b, a).transpose(2, 3)
        else:
            parts = in_own_order(vectors, self.shape, self.taps).reshape(k, groups, a, b)
        seen = torch.einsum("kgab,ngbl->nkgal", parts, self.inputs)
        return torch.einsum("ndgal,nkgal->ndk", self.columns, seen)

    def joins(self, other: Factor) -> bool:
        """Whether `other` is a further use of the same weight with the same form."""
        return (
            isinstance(other, OuterProduct)
            and self.transposed == other.transposed
            and self.columns.shape[2:4] == other.columns.shape[2:4]
            and self.inputs.shape[1:3] == other.inputs.shape[1:3]
            and self.offset == other.offset
            and self.taps == other.taps
        )

    def with_bias(self, shift: Shift) -> OuterProduct | None:
        """This factor with the kernel of the bias of the same use included.

        Args:
            shift: Factor of a bias.

        Returns:
            The factor, or None if the two do not share their columns.
        """
        n, d, groups, a, length = self.columns.shape
        same = shift.columns.data_ptr() == self.columns.data_ptr()
        if not same or self.offset or shift.columns.shape != (n, d, groups * a, length):
            return None
        if groups > 1:
            return None
        whole = copy(self)
        whole.offset = 1.0
        return whole

    def join(self, others: list[OuterProduct]) -> OuterProduct:
        """One factor for several uses of a weight: their positions one after the other."""
        columns = torch.cat([self.columns, *(other.columns for other in others)], dim=4)
        inputs = torch.cat([self.inputs, *(other.inputs for other in others)], dim=3)
        return OuterProduct(columns, inputs, self.shape, self.transposed, taps=self.taps)


def add_uses(uses: list[Factor]) -> Factor:
    """One factor for a parameter that is used several times (tied weights, repeated modules).

    Cross terms between the uses belong to the kernel, so the rows are summed before anything is
    contracted: along the positions where the uses have the same form, as dense rows otherwise.

    Args:
        uses: The factors of all uses of one parameter.

    Returns:
        The factor of the sum.
    """
    first, *rest = uses
    if not rest:
        return first
    if isinstance(first, OuterProduct) and all(first.joins(other) for other in rest):
        return first.join([other for other in rest if isinstance(other, OuterProduct)])
    total = first.rows().clone()
    for other in rest:
        total += other.rows()
    return Dense(total, first.shape)
