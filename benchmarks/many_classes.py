"""Top-k GGN eigenpairs with slopes and curvatures of a classifier with 1000 classes, N = 64.

    python -m benchmarks.many_classes              # about 3 minutes on 2 cores
    python -m benchmarks.many_classes --k 5 --steps 0 100

The network and the images of examples/many_classes.py; method="auto" goes without a Gram matrix.
Each evaluation is timed between training steps on the same samples, whose median is the unit.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import resource
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from lightning_vivit import Problem, evaluate

ROUNDS = 9


def example() -> Any:
    path = Path(__file__).parents[1] / "examples" / "many_classes.py"
    spec = importlib.util.spec_from_file_location("many_classes", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def train(module: Any, optimizer: Any, batch: Any) -> float:
    began = time.perf_counter()
    loss = module.training_step(batch, 0)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return time.perf_counter() - began


def compare(module: Any, batch: Any, k: int) -> tuple[list[float], int]:
    """Evaluations in training steps' time, sorted, and the products of one."""
    twin = copy.deepcopy(module)
    twin.log = module.log
    optimizer = twin.configure_optimizers()
    ratios = []
    for _ in range(ROUNDS + 1):  # the first one pays for what is made once
        step = statistics.median(train(twin, optimizer, batch) for _ in range(12))
        began = time.perf_counter()
        problem = Problem.from_training_step(module, batch)
        found = evaluate(problem, method="auto", kernel=False, k=k, tol=1e-2)
        found.directions(k=k)
        ratios.append((time.perf_counter() - began) / step)
    return sorted(ratios[1:]), found.products


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--k", type=int, nargs="+", default=[3, 5, 10])
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 20, 100, 200])
    options = parser.parse_args()
    torch.manual_seed(0)
    source = example()
    loader = DataLoader(source.triples(), 64, shuffle=True)
    module = source.Classifier()
    module.log = lambda *args, **kwargs: None
    optimizer = module.configure_optimizers()
    batches = iter(loader)
    probe = next(batches)
    for step in range(max(options.steps) + 1):
        for k in options.k if step in options.steps else ():
            ratios, products = compare(module, probe, k)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            print(
                f"step {step}, k {k}: {statistics.median(ratios):.1f} training steps "
                f"({ratios[0]:.1f} to {ratios[-1]:.1f}), {products} products, "
                f"{peak:.2f} GiB of the process"
            )
        train(module, optimizer, next(batches))


if __name__ == "__main__":
    main()
