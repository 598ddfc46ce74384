"""What was done for each layer, at which cost: the table that `Evaluation.explain` shows."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_vivit.factors import (
    Dense,
    Factor,
    Formed,
    OuterProduct,
    Shift,
    contract,
    contract_keeping,
)
from lightning_vivit.factors.orders import CHUNK_ENTRIES
from lightning_vivit.factors.planning import (
    Size,
    multiplications_per_second,
    predicted_costs,
    rows_cost,
    worth_keeping,
)


@dataclass(frozen=True)
class PlanRow:
    """Contraction of one factor.

    Attributes:
        names: The parameters that it covers.
        order: Order of contraction, ``dense`` for explicit rows, ``rows, kept`` for rows that
            were formed and kept.
        shape: Sizes for the reader.
        cost: Predicted cost, in multiplications of a large matrix product.
        measured: Seconds that it took (on an accelerator, to start it).
        memory: Bytes of the factor, or of the rows that were kept in its place.
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
    room: int = 0  # bytes that may be spent on rows that are kept
    formed: dict[tuple[int, int], Formed] = field(default_factory=dict)  # by the factor's tensors

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
        if order == "rows" and self._keeps(first, second, mode):
            assert isinstance(first, OuterProduct)
            result, formed = contract_keeping(first, self.entries)
            self.formed[id(first.columns), id(first.inputs)] = formed
            self.room -= formed.size
            order, memory = "rows, kept", formed.size
        else:
            chosen = None if order == "dense" else order
            result = contract(first, second, mode, chosen, self.entries)
            tensors = [value for value in vars(first).values() if isinstance(value, Tensor)]
            memory = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        measured = time.perf_counter() - start
        self.rows.append(PlanRow(names, order, shape, cost, measured, memory))
        return result

    def _keeps(self, first: Factor, second: Factor, mode: str) -> bool:
        """Whether the rows of a symmetric contraction are kept: they pay, and there is room."""
        if first is not second or mode != "full" or not isinstance(first, OuterProduct):
            return False
        n, d = first.columns.shape[:2]
        size = n * d * first.shape.numel() * first.columns.element_size()
        on_cpu = first.columns.device.type == "cpu"
        return on_cpu and size <= self.room and worth_keeping(Size.of(first, first, mode))

    def with_kept_rows(self, factors: Mapping[str, Factor]) -> dict[str, Factor]:
        """Factors with the rows that were kept in place of their columns, which can be freed.

        Args:
            factors: Parameter -> factor, as they were contracted.

        Returns:
            Parameter -> factor; biases of the same columns become rows, too.
        """
        found: dict[str, Factor] = {}
        freed = set()
        for name, factor in factors.items():
            if isinstance(factor, OuterProduct):
                kept = self.formed.pop((id(factor.columns), id(factor.inputs)), None)
                found[name] = factor if kept is None else kept
                if kept is not None:
                    freed.add(factor.columns.data_ptr())
        for name, factor in factors.items():
            if isinstance(factor, Shift) and factor.columns.data_ptr() in freed:
                found[name] = Dense(factor.rows(), factor.shape)
        return {name: found.get(name, factor) for name, factor in factors.items()}

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
