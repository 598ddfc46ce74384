"""Work and bytes of each rank: `python -m benchmarks.parallel [WORKLOAD ...] [--ranks 1 2 4]`.

Multiplications are counted by torch's FlopCounterMode (matrix products and convolutions) and times
are CPU times of the process, so that ranks that share a core do not disturb the numbers much. The
batch of the workload is divided among the ranks.
"""

from __future__ import annotations

import argparse
import os
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.workloads import SHORT, build
from lightning_vivit import Problem
from lightning_vivit.evaluation.evaluate import evaluate
from lightning_vivit.evaluation.exact import Evaluation
from lightning_vivit.parallel import Part, Ranks, take_part

REPEATS = 5


def work(
    rank: int, size: int, short: str, kernel: bool, port: int, results: mp.SimpleQueue
) -> None:
    """One rank: evaluate the batch some times and report."""
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=size)
    ranks = Ranks(rank, size, dist.group.WORLD)
    load = build(short)
    whole = (load.inputs, load.targets)

    def once() -> Evaluation:
        part = None
        batch = whole
        if size > 1:
            batch, borrowed = take_part(whole, ranks)
            part = Part(ranks, borrowed, lambda: Problem(load.model, nn.CrossEntropyLoss(), *whole))
        problem = Problem(load.model, nn.CrossEntropyLoss(), *batch)
        return evaluate(problem, kernel=kernel, part=part)

    once()
    before = ranks.sent
    with FlopCounterMode(display=False) as counter:
        once()
    sent = ranks.sent - before
    times, solved = [], []
    for _ in range(REPEATS):
        dist.barrier()
        start = time.process_time()
        evaluation = once()
        times.append(time.process_time() - start)
        start = time.process_time()
        evaluation.directions("all", 10)
        solved.append(time.process_time() - start)
    top = float(evaluation.eigenvalues()[-1])
    numbers = (counter.get_total_flops() / 2, sent, min(times), min(solved), top)
    results.put((rank, *numbers))
    dist.destroy_process_group()


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workloads", nargs="*", default=["mlp", "3c3d"], metavar="WORKLOAD")
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--ntk", action="store_true", help="exact kernel, not only the GGN's")
    chosen = parser.parse_args()
    print("| workload | ranks | multiply-adds of a rank | MB sent | CPU s | eigenpairs, CPU s |")
    print("|---|---|---|---|---|---|")
    for short in chosen.workloads:
        name = next(name for key, name in SHORT.items() if key == short)
        for size in chosen.ranks:
            results = mp.get_context("spawn").SimpleQueue()
            port = 29500 + os.getpid() % 1000 + size
            mp.spawn(work, (size, short, chosen.ntk, port, results), nprocs=size)
            rows = [results.get() for _ in range(size)]
            count, sent, seconds, solved = (max(row[i] for row in rows) for i in range(1, 5))
            print(
                f"| {name} | {size} | {count / 1e9:.2f} G | {sent / 1e6:.1f} | {seconds:.3f} | "
                f"{solved:.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
