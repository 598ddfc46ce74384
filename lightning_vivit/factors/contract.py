"""Multiply two factors: the block of a tangent kernel that one parameter contributes.

Three orders of summation are known for outer products, and they differ by factors of hundreds
in time. `choose_order` picks one per pair of factors.

- ``kernels``: form the kernel of the inputs and the kernel of the columns first, multiply them
  entry by entry. Best at one position (Linear on vectors).
- ``rows``: form the rows, multiply them. Best for many positions and small weights.
- ``inputs_first``: form the input kernel, contract it with one side's columns, then with the
  other's. Best for large weights at few positions (late convolutions).
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_vivit.factors.base import Dense, Factor, Shift
from lightning_vivit.factors.outer import OuterProduct

MODES = ("full", "trace", "diagonal")
ORDERS = ("kernels", "rows", "inputs_first")
_CHUNK_ENTRIES = 1 << 25  # entries of temporary rows held at once (128 MB in float32)


def contract(first: Factor, second: Factor, mode: str = "full", order: str | None = None) -> Tensor:
    """Products of all rows of two factors of the same parameter.

    Args:
        first: Factor with N samples.
        second: Factor with M samples; pass the same object to use the symmetry.
        mode: ``full``: [N, D, M, D]; ``trace``: [N, M], summed over equal columns;
            ``diagonal``: [N, M, D], equal columns only.
        order: Order of contraction for outer products; None chooses the cheapest.

    Returns:
        The kernel contribution in the layout of `mode`.
    """
    if isinstance(first, OuterProduct) and isinstance(second, OuterProduct) and first.joins(second):
        order = order or choose_order(first, second, mode)
        if order == "kernels":
            return _contract_kernels(first, second, mode)
        if order == "inputs_first":
            return _contract_inputs_first(first, second, mode)
        return _contract_outer_rows(first, second, mode)
    left = first.rows()
    right = left if first is second else second.rows()
    return multiply_rows(left, right, mode)


def choose_order(first: OuterProduct, second: OuterProduct, mode: str) -> str:
    """The order with the fewest multiplications, counted with the bytes that each moves."""
    n, d, g, a, length = first.columns.shape
    m = second.columns.shape[0]
    b = first.inputs.shape[2]
    if mode == "full":
        pairs = n * m * d * d
    elif mode == "trace":
        pairs = n * m * d
    else:
        pairs = n * m * d
    cost = {
        "rows": (n + m) * d * g * a * b * (length + 4) + pairs * g * a * b,
        "kernels": g * n * m * length**2 * b + pairs * g * length**2 * (a + 4),
        "inputs_first": g * n * m * length**2 * b
        + n * m * d * g * a * length**2
        + pairs * g * a * length
        + n * m * d * g * a * length * 4,
    }
    if length == 1 and g == 1:
        return "kernels"
    return min(cost, key=lambda name: cost[name])


def multiply_rows(left: Tensor, right: Tensor, mode: str) -> Tensor:
    """Products of explicit rows.

    Args:
        left: [N, D, P].
        right: [M, D, P].
        mode: As in `contract`.

    Returns:
        The products in the layout of `mode`.
    """
    n, d, _ = left.shape
    m = right.shape[0]
    if mode == "full":
        flat = left.reshape(n * d, -1)
        other = flat if right is left else right.reshape(m * d, -1)
        return (flat @ other.T).reshape(n, d, m, d)
    if mode == "trace":
        return left.reshape(n, -1) @ right.reshape(m, -1).T
    products = torch.bmm(left.transpose(0, 1), right.permute(1, 2, 0))  # [D, N, M]
    return products.permute(1, 2, 0)


def _contract_outer_rows(first: OuterProduct, second: OuterProduct, mode: str) -> Tensor:
    """Rows first, a slice of the A outputs at a time so that memory stays bounded."""
    n, d, g, a, _ = first.columns.shape
    m, b = second.columns.shape[0], first.inputs.shape[2]
    step = max(1, min(a, _CHUNK_ENTRIES // max(1, (n + m) * d * b)))
    total: Tensor | None = None
    for group in range(g):
        for start in range(0, a, step):
            stop = min(a, start + step)
            left = _some_rows(first, group, start, stop)
            right = left if first is second else _some_rows(second, group, start, stop)
            part = multiply_rows(left, right, mode)
            total = part if total is None else total.add_(part)
    assert total is not None
    return total


def _some_rows(factor: OuterProduct, group: int, start: int, stop: int) -> Tensor:
    """Rows of one group restricted to outputs start..stop-1, [N, D, (stop-start)*B]."""
    side = factor.columns[:, :, group, start:stop]  # [N, D, a, L]
    n, d, a, length = side.shape
    inputs = factor.inputs[:, group]  # [N, B, L]
    rows = torch.bmm(side.reshape(n, d * a, length), inputs.transpose(1, 2))
    return rows.reshape(n, d, -1)


def _contract_kernels(first: OuterProduct, second: OuterProduct, mode: str) -> Tensor:
    """Input kernel times column kernel, summed over groups and pairs of positions."""
    n, d, g, a, length = first.columns.shape
    m, b = second.columns.shape[0], first.inputs.shape[2]
    total: Tensor | None = None
    for group in range(g):
        left = first.inputs[:, group].transpose(1, 2).reshape(n * length, b)
        right = second.inputs[:, group].transpose(1, 2).reshape(m * length, b)
        inputs = left @ right.T  # [N*L, M*L]
        # columns as [N, L, D, A] so that positions stand next to samples, as in the inputs
        side = first.columns[:, :, group].permute(0, 3, 1, 2)
        other = second.columns[:, :, group].permute(0, 3, 1, 2)
        if mode == "full":
            flat = side.reshape(n * length * d, a)
            again = flat if first is second else other.reshape(m * length * d, a)
            columns = (flat @ again.T).reshape(n, length, d, m, length, d)
            weights = inputs.reshape(n, length, 1, m, length, 1)
            part = columns.mul_(weights)
            part = part.reshape(n, d, m, d) if length == 1 else part.sum((1, 4))
        elif mode == "trace":
            columns = side.reshape(n * length, d * a) @ other.reshape(m * length, d * a).T
            part = columns.mul_(inputs).reshape(n, length, m, length).sum((1, 3))
        else:
            left_d = side.permute(2, 0, 1, 3).reshape(d, n * length, a)
            right_d = other.permute(2, 3, 0, 1).reshape(d, a, m * length)
            columns = torch.bmm(left_d, right_d).mul_(inputs)
            part = columns.reshape(d, n, length, m, length).sum((2, 4)).permute(1, 2, 0)
        total = part if total is None else total + part
    assert total is not None
    return total


def _contract_inputs_first(first: OuterProduct, second: OuterProduct, mode: str) -> Tensor:
    """(columns . input kernel) . columns, one sample of the second factor at a time."""
    n, d, g, a, length = first.columns.shape
    m = second.columns.shape[0]
    blocks = []
    side = first.columns.permute(0, 2, 1, 3, 4).reshape(n * g, d * a, length)
    inputs = first.inputs.reshape(n * g, -1, length).transpose(1, 2)  # [N*G, L, B]
    for index in range(m):
        other = second.inputs[index]  # [G, B, L]
        kernel = torch.bmm(inputs, other.repeat(n, 1, 1))  # [N*G, L, L]
        partial = torch.bmm(side, kernel).reshape(n, g, d, a * length)
        columns = second.columns[index].transpose(0, 1).reshape(g, d, a * length)
        if mode == "full":
            left = partial.permute(1, 0, 2, 3).reshape(g, n * d, -1)
            block = torch.bmm(left, columns.transpose(1, 2)).sum(0).reshape(n, d, d)
        elif mode == "trace":
            left = partial.reshape(n, -1)
            block = left @ columns.reshape(-1)
        else:
            block = torch.einsum("ngdx,gdx->nd", partial, columns)
        blocks.append(block)
    if mode == "full":
        return torch.stack(blocks, dim=2)  # [N, D, M, D]
    return torch.stack(blocks, dim=1)


def with_constant_input(weight: OuterProduct, shift: Shift) -> OuterProduct | None:
    """The bias as one more input that is constantly 1, if both saw the same columns.

    Args:
        weight: Factor of the weight.
        shift: Factor of the bias.

    Returns:
        The joined factor, or None if the two do not belong to the same use.
    """
    n, d, g, a, length = weight.columns.shape
    same = shift.columns.data_ptr() == weight.columns.data_ptr()
    if not same or g != 1 or shift.columns.shape != (n, d, a, length):
        return None
    ones = weight.inputs.new_ones(n, 1, 1, length)
    inputs = torch.cat([weight.inputs, ones], dim=2)
    return OuterProduct(weight.columns, inputs, torch.Size([a, inputs.shape[2]]), False)


__all__ = [
    "MODES",
    "ORDERS",
    "Dense",
    "choose_order",
    "contract",
    "multiply_rows",
    "with_constant_input",
]
