"""Choose the order of contraction by its predicted time.

Counting multiplications alone chooses badly: small batched products reach a fraction of a large
product's speed, and fresh memory costs more than arithmetic. The model counts the arithmetic of
each step at the speed of its kind, and the bytes that are written and read back. Its constants
are ratios to the speed of a large matrix product, measured on CPUs; the choice depends on the
ratios only.
"""

from __future__ import annotations

from dataclasses import dataclass

from lightning_vivit.factors.outer import OuterProduct

_LARGE = 1.0  # relative cost of one multiplication in a large product
_BATCHED = 1.8  # in a batch of products with a short inner axis
_SKINNY = 3.0  # in products with few rows
_ENTRY = 60.0  # of writing one entry to memory and reading it back
_CALL = 3.0e6  # of starting one operation


@dataclass(frozen=True)
class Size:
    """Shape of a contraction: N x M samples, C x D columns, G groups, A x B weight, L positions."""

    n: int
    m: int
    c: int
    d: int
    g: int
    a: int
    b: int
    length: int
    symmetric: bool
    mode: str

    @classmethod
    def of(cls, first: OuterProduct, second: OuterProduct, mode: str) -> Size:
        """Read the size off two factors."""
        n, c, g, a, length = first.columns.shape
        m, d = second.columns.shape[:2]
        b = first.inputs.shape[2]
        return cls(n, m, c, d, g, a, b, length, first is second, mode)


def predicted_costs(size: Size) -> dict[str, float]:
    """Predicted cost of each order, in multiplications of a large matrix product.

    Args:
        size: The contraction.

    Returns:
        Order -> cost.
    """
    n, m, c, d, g, a, b, length = (
        size.n,
        size.m,
        size.c,
        size.d,
        size.g,
        size.a,
        size.b,
        size.length,
    )
    rows_made = n * c if size.symmetric else n * c + m * d
    pairs = n * m * (c * d if size.mode == "full" else d)
    half = 0.625 if size.symmetric and size.mode == "full" else 1.0
    triangle = 0.5 if size.symmetric else 1.0
    short = _BATCHED if length < 64 else _LARGE
    rows = (
        rows_made * g * a * b * (length * short + _ENTRY / 4)
        + pairs * g * a * b * half * _LARGE
        + _CALL * g
    )
    kernels = g * (
        n * m * length**2 * b * _LARGE
        + pairs * length**2 * (a * half * _LARGE + _ENTRY / (1 if length > 1 else 4))
        + 4 * _CALL
    )
    inputs_first = (
        triangle
        * g
        * (
            n * m * length**2 * b * _BATCHED
            + n * m * c * a * length * (length * _BATCHED + _ENTRY / 8)
            + pairs * a * length * _SKINNY
        )
        + 6 * _CALL * m
    )
    return {"rows": rows, "kernels": kernels, "inputs_first": inputs_first}


def choose_order(first: OuterProduct, second: OuterProduct, mode: str) -> str:
    """The order with the least predicted cost.

    Args:
        first: The left factor.
        second: The right factor.
        mode: ``full``, ``trace`` or ``diagonal``.

    Returns:
        Name of the order.
    """
    costs = predicted_costs(Size.of(first, second, mode))
    return min(costs, key=lambda name: costs[name])
