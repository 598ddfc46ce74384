"""The currency between the stages: the part of a parameter's per-sample Jacobians.

A factor stands for the matrix [N*D, P] whose row (n, c) is the gradient of column c of sample n
with respect to one parameter of P entries. A backend makes factors, `contract` multiplies them,
and nobody in between needs to know how the rows are stored.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Factor(ABC):
    """Rows of backpropagated columns for one parameter, in a structured form.

    Attributes:
        shape: Shape of the parameter.
        taps: Order of the entries where rows are written, see `in_parameter_order`.
    """

    shape: torch.Size
    taps: int = 1

    @property
    @abstractmethod
    def num_samples(self) -> int:
        """Number of samples N."""

    @property
    @abstractmethod
    def num_columns(self) -> int:
        """Number of columns D per sample."""

    @abstractmethod
    def narrow(self, start: int, stop: int) -> Factor:
        """The factor of samples start..stop-1, without copying."""

    @abstractmethod
    def rows(self) -> Tensor:
        """All rows, [N, D, P] in the parameter's memory order."""

    def write_rows(self, out: Tensor) -> None:
        """Write all rows to memory that is there, with the entries in the factor's own order.

        Args:
            out: [N, D, P], each sample's rows contiguous.
        """
        out.copy_(self.rows())

    @abstractmethod
    def weighted_sum(self, coefficients: Tensor) -> Tensor:
        """Sum of the rows with weights.

        Args:
            coefficients: [N, D, K].

        Returns:
            [K, *shape]: sum over n and c of coefficients[n, c, k] times row (n, c).
        """

    def products(self, vectors: Tensor) -> Tensor:
        """Scalar products of all rows with vectors in parameter space.

        Args:
            vectors: [K, *shape].

        Returns:
            [N, D, K].
        """
        return self.rows() @ vectors.reshape(len(vectors), -1).T


class Dense(Factor):
    """Explicit rows, for parameters of few entries and for everything without structure.

    Attributes:
        values: [N, D, P], entries in the order that `taps` says.
        shape: Shape of the parameter.
        taps: See `in_parameter_order`.
    """

    def __init__(self, values: Tensor, shape: torch.Size, taps: int = 1) -> None:
        """Keep the rows.

        Args:
            values: [N, D, P].
            shape: Shape of the parameter, P entries.
            taps: The order of the entries, see `in_parameter_order`.
        """
        self.values = values
        self.shape = shape
        self.taps = taps

    @property
    def num_samples(self) -> int:
        """Number of samples N."""
        return self.values.shape[0]

    @property
    def num_columns(self) -> int:
        """Number of columns D per sample."""
        return self.values.shape[1]

    def narrow(self, start: int, stop: int) -> Dense:
        """The factor of samples start..stop-1."""
        return Dense(self.values[start:stop], self.shape, self.taps)

    def rows(self) -> Tensor:
        """The rows, [N, D, P]."""
        if self.taps == 1:
            return self.values
        return in_parameter_order(self.values, self.shape, self.taps).flatten(2)

    def write_rows(self, out: Tensor) -> None:
        """Write all rows [N, D, P], with the entries as they are."""
        out.copy_(self.values)

    def weighted_sum(self, coefficients: Tensor) -> Tensor:
        """Sum of the rows with weights, [K, *shape]."""
        n, d, k = coefficients.shape
        flat = coefficients.reshape(n * d, k).T @ self.values.reshape(n * d, -1)
        return in_parameter_order(flat, self.shape, self.taps)

    def products(self, vectors: Tensor) -> Tensor:
        """Scalar products of all rows with vectors [K, *shape]: [N, D, K]."""
        return self.values @ in_own_order(vectors, self.shape, self.taps).T


class Shift(Factor):
    """A bias: the backpropagated columns summed over the positions.

    Kept apart from `Dense`, because a weight with the same columns can take the bias in as one
    more input that is constantly 1.
    """

    def __init__(self, columns: Tensor, shape: torch.Size) -> None:
        """Keep the columns.

        Args:
            columns: [N, D, A, L], the columns at A outputs and L positions.
            shape: Shape of the parameter, A entries.
        """
        self.columns = columns
        self.shape = shape

    @property
    def num_samples(self) -> int:
        """Number of samples N."""
        return self.columns.shape[0]

    @property
    def num_columns(self) -> int:
        """Number of columns D per sample."""
        return self.columns.shape[1]

    def narrow(self, start: int, stop: int) -> Shift:
        """The factor of samples start..stop-1."""
        return Shift(self.columns[start:stop], self.shape)

    def rows(self) -> Tensor:
        """The rows [N, D, A]."""
        length = self.columns.shape[3]
        return self.columns[..., 0] if length == 1 else self.columns.sum(3)

    def weighted_sum(self, coefficients: Tensor) -> Tensor:
        """Sum of the rows with weights, [K, *shape]."""
        total = torch.einsum("ndk,nda->ka", coefficients, self.rows())
        return total.reshape(coefficients.shape[2], *self.shape)


def in_parameter_order(values: Tensor, shape: torch.Size, taps: int) -> Tensor:
    """Entries as the parameter has them.

    Args:
        values: [*lead, P], with T taps in the order (A, T, B/T) for a parameter [A, B/T, *kernel]:
            the positions of a convolution's kernel before its inputs, as maps with the channels
            last give them. With T = 1 nothing is moved.
        shape: Shape of the parameter, P entries.
        taps: T.

    Returns:
        [*lead, *shape].
    """
    lead = values.shape[:-1]
    if taps > 1:
        values = values.reshape(*lead, shape[0], taps, -1).transpose(-1, -2).contiguous()
    return values.reshape(*lead, *shape)


def in_own_order(values: Tensor, shape: torch.Size, taps: int) -> Tensor:
    """The opposite of `in_parameter_order`: [*lead, *shape] to [*lead, P]."""
    lead = values.shape[: values.ndim - len(shape)]
    if taps > 1:
        values = values.reshape(*lead, shape[0], -1, taps).transpose(-1, -2)
    return values.reshape(*lead, -1)
