"""What observing a step costs: time of the recorder, and the memory of what it keeps.

    python -m benchmarks.tape                  # 5 minutes on 2 cores
    python -m benchmarks.tape --only gpt mlp --pairs 50

Steps (forward, backward, SGD) with and without the recorder in turn. Time is CPU time of the
thread, so that a busy machine counts less; the median of the pairs' ratios is shown. Memory is that
of tensors which nothing else holds (copies before a write, random states, constants) and of Python
objects, over the bytes that the graph saved for the backward pass.
"""

from __future__ import annotations

import argparse
import statistics
import time
import tracemalloc
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.workloads import SHORT, build
from lightning_vivit.demo.gpt import GPT
from lightning_vivit.problem.tape.observer import observe
from lightning_vivit.problem.tape.program import Program


def subjects() -> Iterator[tuple[str, nn.Module, tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    for name, (layers, width, length, count) in {
        "gpt": (2, 64, 32, 8),
        "gpt-6": (6, 128, 64, 8),
    }.items():
        net = nn.Sequential(GPT(65, width, layers, 4, length), nn.Dropout(0.1))
        tokens = torch.randint(0, 65, (count, length + 1))
        yield name, net, (tokens[:, :-1], tokens[:, 1:].flatten())
    for short in SHORT:
        work = build(short)
        yield short, work.model, (work.inputs, work.targets)


def loss_of(net: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(net(inputs).flatten(0, -2), targets)


def step(net: nn.Module, batch: Any, optimizer: torch.optim.Optimizer, observed: bool) -> float:
    begin = time.thread_time()
    optimizer.zero_grad()
    if observed:
        loss, _ = observe(lambda *given: loss_of(net, *given), net, *batch)
    else:
        loss = loss_of(net, *batch)
    loss.backward()
    optimizer.step()
    return time.thread_time() - begin


def cost(net: nn.Module, batch: Any, pairs: int) -> tuple[float, float]:
    """Seconds of a step, and the median of the ratios of steps with and without."""
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4)
    for observed in (False, True, False, True):
        step(net, batch, optimizer, observed)
    times = [
        (step(net, batch, optimizer, False), step(net, batch, optimizer, True))
        for _ in range(pairs)
    ]
    ratios = [observed / plain for plain, observed in times]
    return statistics.median(plain for plain, _ in times), statistics.median(ratios)


def memory(net: nn.Module, batch: Any) -> tuple[int, int]:
    """Bytes of the graph's saved tensors, and bytes that the program holds alone."""
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        observe(lambda *given: loss_of(net, *given), net, *batch)
        tracemalloc.start()
        _, program = observe(lambda *given: loss_of(net, *given), net, *batch)
        objects = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
    own = {t.untyped_storage().data_ptr() for t in (*net.parameters(), *net.buffers(), *batch)}
    graph = sum(size for place, size in saved.items() if place not in own)
    return graph, objects + sum(
        tensor.nbytes
        for tensor in held(program)
        if tensor.untyped_storage().data_ptr() not in own | saved.keys()
    )


def held(program: Program) -> Iterator[Tensor]:
    for each in program.inputs.values():
        yield each.value
    for operation in program.operations:
        if operation.draw is not None:
            yield operation.draw.state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=None)
    parser.add_argument("--pairs", type=int, default=40)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'':14s}{'step, ms':>10s}{'recorder':>10s}{'graph, MiB':>12s}{'program, MiB':>14s}")
    for name, net, batch in subjects():
        if options.only is None or name in options.only:
            net.train()
            seconds, ratio = cost(net, batch, options.pairs)
            graph, kept = memory(net, batch)
            print(
                f"{name:14s}{seconds * 1e3:10.2f}{ratio - 1:10.1%}"
                f"{graph / 2**20:12.2f}{kept / 2**20:14.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
