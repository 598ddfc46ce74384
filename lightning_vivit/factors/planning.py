"""Choose the order of contraction by its predicted time.

Counting multiplications alone chooses badly: small batched products reach a fraction of a large
product's speed, and fresh memory costs more than arithmetic. The model counts the arithmetic of
each step at the speed of its kind, and the entries that are written and read back. Its constants
are ratios to the speed of a large matrix product, measured on CPUs; the choice depends on the
ratios only. One short measurement at first use turns costs into seconds.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import lru_cache

import torch

from lightning_vivit.factors.outer import OuterProduct

_BATCHED = 1.8  # relative cost of a multiplication in a batch of products with a short inner axis
_SKINNY = 1.3  # in products with few rows
_WHOLE = 0.65  # in a large product that is not divided into blocks
_ENTRY = 60.0  # of writing one entry to memory and reading it back
_SCATTERED = 130.0  # the same in another order
_CACHED = 20.0  # the same where it stays in a cache
_ROW = 290.0  # of one row of a small product
_PAIR = 5.0e4  # of one small product in a batch
_CALL = 3.0e6  # of starting one operation


@dataclass(frozen=True)
class Size:
    """Shape of a contraction: N x M samples, C x D columns, G groups, A x B weight, L positions.

    `ragged` says that the two sides have different numbers of positions.
    """

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
    ragged: bool = False

    @classmethod
    def of(cls, first: OuterProduct, second: OuterProduct, mode: str) -> Size:
        """Read the size off two factors."""
        n, c, g, a, length = first.columns.shape
        m, d = second.columns.shape[:2]
        b = first.inputs.shape[2]
        ragged = second.columns.shape[4] != length
        return cls(n, m, c, d, g, a, b, length, first is second, mode, ragged)

    @property
    def pairs(self) -> int:
        """Number of pairs of rows that are compared."""
        return self.n * self.m * (self.c * self.d if self.mode == "full" else self.d)


def predicted_costs(size: Size) -> dict[str, float]:
    """Predicted cost of each order, in multiplications of a large matrix product.

    Args:
        size: The contraction.

    Returns:
        Order -> cost; with ragged positions only the order that forms the rows is possible.
    """
    half = 0.625 if size.symmetric and size.mode == "full" else 1.0
    if size.ragged:
        return {"rows": _rows(size, half)}
    return {
        "rows": _rows(size, half),
        "kernels": _kernels(size, half),
        "inputs_first": _inputs_first(size),
    }


def _rows(size: Size, half: float) -> float:
    made = size.n * size.c + (0 if size.symmetric else size.m * size.d)
    weight = size.g * size.a * size.b
    short = _BATCHED if size.length < 64 else 1.0
    forming = made * weight * (size.length * short + _ENTRY / 4)
    return forming + size.pairs * weight * half + _CALL * size.g


def _kernels(size: Size, half: float) -> float:
    squared = size.length**2
    inputs = size.n * size.m * squared * size.b
    entry = _SCATTERED if size.length > 1 else _ENTRY / 4
    columns = size.pairs * squared * (size.a * half * _WHOLE + entry)
    return size.g * (inputs + columns + 4 * _CALL)


def _inputs_first(size: Size) -> float:
    samples, length = size.n * size.m, size.length
    inputs = samples * length**2 * size.b
    partial = samples * size.c * size.a * (length * (length + _CACHED) + _ROW)
    final = size.pairs * size.a * length * _SKINNY
    triangle = 0.5 if size.symmetric else 1.0
    return triangle * size.g * (inputs + partial + final + samples * _PAIR) + _CALL * size.m


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


def rows_cost(pairs: int, entries: int) -> float:
    """Cost of multiplying explicit rows of so many entries."""
    return pairs * entries + _CALL


@lru_cache(maxsize=8)
def multiplications_per_second(device: torch.device, dtype: torch.dtype) -> float:
    """Speed of a large matrix product, measured once per device and dtype (some milliseconds).

    Args:
        device: Where.
        dtype: Of the factors.

    Returns:
        Multiplications (with their additions) per second.
    """
    size = 512 if device.type == "cpu" else 4096
    matrix = torch.ones(size, size, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(4):
        _wait(device)
        start = time.perf_counter()
        matrix @ matrix
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return size**3 / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
