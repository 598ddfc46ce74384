"""Multiply two factors: the block of a tangent kernel that one parameter contributes."""

from __future__ import annotations

from torch import Tensor

from lightning_vivit.factors.factor import Dense, Factor
from lightning_vivit.factors.lookup import Lookup
from lightning_vivit.factors.orders import CHUNK_ENTRIES, ORDERS, by_rows, multiply_rows
from lightning_vivit.factors.outer import OuterProduct
from lightning_vivit.factors.planning import choose_order

MODES = ("full", "trace", "diagonal")


def contract(
    first: Factor,
    second: Factor,
    mode: str = "full",
    order: str | None = None,
    entries: int = CHUNK_ENTRIES,
) -> Tensor:
    """Products of all rows of two factors of the same parameter.

    Args:
        first: Factor with N samples.
        second: Factor with M samples; pass the same object to use the symmetry.
        mode: ``full``: [N, D, M, D]; ``trace``: [N, M], summed over equal columns;
            ``diagonal``: [N, M, D], equal columns only.
        order: Order of contraction for outer products (``rows``, ``kernels`` or
            ``inputs_first``); None chooses the cheapest.
        entries: Entries of temporary rows that may be held at once.

    Returns:
        The kernel contribution in the layout of `mode`, in new memory.
    """
    if isinstance(first, OuterProduct) and isinstance(second, OuterProduct) and first.joins(second):
        order = order or choose_order(first, second, mode)
        if order == "rows":
            return by_rows(first, second, mode, entries)
        return ORDERS[order](first, second, mode)
    if isinstance(first, Lookup) and isinstance(second, Lookup):
        return first.kernel(second, mode)
    if isinstance(first, Dense) and isinstance(second, Dense) and first.taps == second.taps:
        return multiply_rows(first.values, second.values, mode)  # in whatever order
    left = first.rows()
    return multiply_rows(left, left if first is second else second.rows(), mode)
