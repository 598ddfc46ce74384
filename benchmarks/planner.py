"""The planner against every fixed order of contraction, layer by layer.

    python -m benchmarks.planner                      # all workloads, about 10 minutes
    python -m benchmarks.planner --workload mlp 3c3d
    python -m benchmarks.planner --workload shapes    # convolutions of many sizes, 5 minutes

Each layer's factor is contracted in every order in turn, several times; a ratio is the time of the
planner's choice over the fastest order's. Orders that are predicted to be far slower (30 times, or
more memory than there is) are left out: they are named in the last column.
"""

from __future__ import annotations

import argparse
import statistics
import time
from unittest import mock

import torch

from benchmarks.workloads import SHORT, build
from lightning_vivit import Problem
from lightning_vivit.factors import OuterProduct, contract
from lightning_vivit.factors.planning import Size, predicted_costs
from lightning_vivit.jacobian import collector
from lightning_vivit.jacobian.autograd import AutogradBackend
from lightning_vivit.jacobian.columns import shared_columns
from lightning_vivit.jacobian.structured import jacobian_factors
from lightning_vivit.kernel.contraction import fuse_biases
from lightning_vivit.losses import make_loss

FAR = 30.0
REPEATS = 5
BATCHES = ((64, 10), (32, 9), (16, 9), (128, 9), (32, 99))  # samples and columns
WEIGHTS = (  # outputs, inputs, positions
    *((16, 144, 64), (32, 288, 64), (64, 576, 64), (96, 576, 49), (128, 864, 36)),
    *((32, 144, 16), (64, 288, 16), (128, 64, 16), (256, 1152, 16), (10, 256, 9)),
    *((32, 144, 4), (64, 288, 4), (512, 2304, 4), (128, 128, 2), (64, 288, 2), (64, 64, 1)),
)
LARGE = 3e10  # multiplications: shapes beyond are left out


def factors_of(short: str) -> dict[str, OuterProduct]:
    """All factors of a workload as outer products, none turned into rows during the sweep."""
    work = build(short)
    problem = Problem(work.model, torch.nn.CrossEntropyLoss(), work.inputs, work.targets)
    with (
        mock.patch.object(collector, "_prefers_rows", lambda factor: False),
        problem.recorded() as live,
    ):
        located = AutogradBackend().locate(live)
        assert live.loss is not None
        basis = make_loss(live.loss, located.layout).basis()
        assert basis is not None
        columns = shared_columns(live.outputs, located.layout, basis)
        found = jacobian_factors(located, columns)
    return {name: f for name, f in fuse_biases(found).items() if isinstance(f, OuterProduct)}


def shapes() -> dict[str, OuterProduct]:
    """Factors of convolutions of many sizes, of random numbers."""
    found = {}
    for n, c in BATCHES:
        for a, b, length in WEIGHTS:
            size = Size(n, n, c, c, 1, a, b, length, symmetric=True, mode="full")
            if min(predicted_costs(size).values()) < LARGE:
                columns, inputs = torch.randn(n, c, 1, a, length), torch.randn(n, 1, b, length)
                name = f"{n} x {c}, {a} x {b}, {length}"
                found[name] = OuterProduct(columns, inputs, torch.Size((a, b)))
    return found


def measure(factor: OuterProduct, orders: list[str]) -> dict[str, float]:
    seconds: dict[str, list[float]] = {order: [] for order in orders}
    for repeat in range(REPEATS + 1):
        for order in orders:
            start = time.perf_counter()
            contract(factor, factor, order=order)
            if repeat:  # the first one allocates
                seconds[order].append(time.perf_counter() - start)
    return {order: statistics.median(found) for order, found in seconds.items()}


def report(title: str, factors: dict[str, OuterProduct]) -> float:
    """Print the table of some factors; returns the total of the choices over that of the best."""
    print(f"\n{title}\n| layer | shape | choice | seconds | fastest | ratio | left out |")
    print("|---|---|---|---|---|---|---|")
    total = best_total = worst = 0.0
    for name, factor in factors.items():
        costs = predicted_costs(Size.of(factor, factor, "full"))
        planned = min(costs, key=lambda order: costs[order])
        choice = "rows" if collector._prefers_rows(factor) else planned
        orders = [order for order in costs if costs[order] <= FAR * costs[planned]]
        found = measure(factor, sorted({*orders, choice}))
        best = min(found, key=lambda order: found[order])
        n, c, g, a, length = factor.columns.shape
        shape = f"N {n} C {c} G {g} {a}x{factor.inputs.shape[2]} L {length}"
        left_out = ", ".join(order for order in costs if order not in found)
        ratio = found[choice] / found[best]
        total, best_total = total + found[choice], best_total + found[best]
        worst = max(worst, ratio)
        print(
            f"| {name} | {shape} | {choice} | {found[choice]:.4f} | {best} | {ratio:.2f} | "
            f"{left_out} |",
            flush=True,
        )
    print(
        f"all layers: {total:.3f} s, fastest orders {best_total:.3f} s, {total / best_total:.2f}; "
        f"of one layer at most {worst:.2f}"
    )
    return total / best_total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--workload", nargs="+", choices=[*SHORT, "shapes"], default=list(SHORT))
    for short in parser.parse_args().workload:
        if short == "shapes":
            report("convolutions of many sizes", shapes())
        else:
            report(SHORT[short], factors_of(short))


if __name__ == "__main__":
    main()
