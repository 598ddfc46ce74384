"""What was done for each layer, at which cost: the table that `Evaluation.explain` shows."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_vivit.factors import Factor, OuterProduct, contract
from lightning_vivit.factors.orders import CHUNK_ENTRIES
from lightning_vivit.factors.planning import (
    Size,
    multiplications_per_second,
    predicted_costs,
    rows_cost,
)


@dataclass(frozen=True)
class PlanRow:
    """Contraction of one factor.

    Attributes:
        names: The parameters that it covers.
        order: Order of contraction, ``dense`` for explicit rows.
        shape: Sizes for the reader.
        cost: Predicted cost, in multiplications of a large matrix product.
        measured: Seconds that it took (on an accelerator, to start it).
        memory: Bytes of the factor.
    """

    names: str
    order: str
    shape: str
    cost: float
    measured: float
    memory: int


@dataclass
class Plan:
    """All contractions of an evaluation, in their order."""

    rows: list[PlanRow] = field(default_factory=list)
    backward: float = 0.0  # seconds of the backward sweeps and of forming the factors
    passes: int = 0
    like: Tensor | None = None  # tells device and dtype
    entries: int = CHUNK_ENTRIES  # of temporary rows that may be held at once

    def run(self, names: str, first: Factor, second: Factor, mode: str) -> Tensor:
        """Contract two factors and note what it cost.

        Args:
            names: The parameters that the factor covers.
            first: The left factor.
            second: The right factor.
            mode: ``full``, ``trace`` or ``diagonal``.

        Returns:
            The kernel contribution.
        """
        order, cost, shape = _predict(first, second, mode)
        self.like = _tensor(first)
        start = time.perf_counter()
        chosen = None if order == "dense" else order
        result = contract(first, second, mode, chosen, self.entries)
        measured = time.perf_counter() - start
        tensors = [value for value in vars(first).values() if isinstance(value, Tensor)]
        memory = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        self.rows.append(PlanRow(names, order, shape, cost, measured, memory))
        return result

    def table(self) -> str:
        """The plan as text: one line for each contraction, the dearest share visible."""
        speed = 1.0
        if self.like is not None:
            speed = multiplications_per_second(self.like.device, self.like.dtype)
        total = sum(row.measured for row in self.rows) + self.backward
        width = max([len(row.names) for row in self.rows] + [10])
        lines = [
            f"{'parameters':<{width}}  {'order':<12}  {'size':<34} {'predicted':>10} "
            f"{'measured':>10} {'memory':>9} {'share':>6}"
        ]
        for row in self.rows:
            lines.append(
                f"{row.names:<{width}}  {row.order:<12}  {row.shape:<34} "
                f"{1e3 * row.cost / speed:>7.1f} ms {1e3 * row.measured:>7.1f} ms "
                f"{row.memory / 2**20:>5.1f} MiB {row.measured / total:>6.1%}"
            )
        sweep = f"backward sweeps ({self.passes})"
        lines.append(
            f"{sweep:<{width}}  {'':<12}  {'':<34} {'':>10} {1e3 * self.backward:>7.1f} ms "
            f"{'':>9} {self.backward / total:>6.1%}"
        )
        return "\n".join(lines)

    def sweep(self, work: Callable[[], dict[str, Factor]]) -> dict[str, Factor]:
        """Run one backward sweep and note its time."""
        start = time.perf_counter()
        found = work()
        self.backward += time.perf_counter() - start
        self.passes += 1
        return found


def _predict(first: Factor, second: Factor, mode: str) -> tuple[str, float, str]:
    if isinstance(first, OuterProduct) and isinstance(second, OuterProduct) and first.joins(second):
        size = Size.of(first, second, mode)
        costs = predicted_costs(size)
        order = min(costs, key=lambda name: costs[name])
        shape = f"{size.g} x [{size.a} x {size.b}], {size.length} positions"
        return order, costs[order], shape
    n, m = first.num_samples, second.num_samples
    columns = first.num_columns * (second.num_columns if mode == "full" else 1)
    entries = torch.Size(first.shape).numel()
    return "dense", rows_cost(n * m * columns, entries), f"{entries} entries"


def _tensor(factor: Factor) -> Tensor:
    return next(value for value in vars(factor).values() if isinstance(value, Tensor))
