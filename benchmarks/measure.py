"""Time two tasks in turn, and the memory of one."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

_REST = 0.1  # seconds; threads of scipy's BLAS wait in a loop for some 25 ms after a call


@dataclass
class Comparison:
    """Medians over pairs of runs, A B A B ..., and how far the results are apart."""

    ours: float  # seconds
    other: float  # seconds
    ratio: float  # median of other / ours
    pairs: int
    deviation: float | None = None


def seconds(task: Callable[[], object], device: torch.device) -> float:
    time.sleep(_REST)
    if device.type == "cuda":
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        task()
        stop.record()
        torch.cuda.synchronize()
        return start.elapsed_time(stop) / 1e3
    begin = time.perf_counter()
    task()
    return time.perf_counter() - begin


def compare(
    ours: Callable[[], object],
    other: Callable[[], object],
    device: torch.device,
    pairs: int,
    limit: float,
) -> Comparison:
    """Alternate the two until `pairs` pairs are done or `limit` seconds have passed."""
    first, second = ours(), other()  # warm-up, and the results
    times: list[tuple[float, float]] = []
    begin = time.perf_counter()
    while len(times) < pairs and (not times or time.perf_counter() - begin < limit):
        times.append((seconds(ours, device), seconds(other, device)))
    return Comparison(
        statistics.median(a for a, _ in times),
        statistics.median(b for _, b in times),
        statistics.median(b / a for a, b in times),
        len(times),
        deviation(first, second),
    )


def deviation(first: object, second: object) -> float | None:
    """Largest difference over the largest entry."""
    if not isinstance(first, Tensor) or not isinstance(second, Tensor):
        return None
    if first.shape != second.shape:
        return float("inf")
    first, second = first.detach().double().cpu(), second.detach().double().cpu()
    return float((first - second).abs().max() / second.abs().max())


def peak_memory(task: Callable[[], object], device: torch.device) -> float:
    """MiB that the task takes over what the process holds before it."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        base = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        task()
        return (torch.cuda.max_memory_allocated() - base) / 2**20
    status, peak, done = Path("/proc/self/status"), [0.0], threading.Event()

    def resident() -> float:
        for line in status.read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) / 1024
        return 0.0

    def watch() -> None:
        while not done.is_set():
            peak[0] = max(peak[0], resident())
            time.sleep(0.001)

    base = resident()
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        task()
    finally:
        done.set()
        watcher.join()
    return max(0.0, peak[0] - base)
