"""This checkout against another one, by turns in one process.

    git worktree add ../before COMMIT
    python -m benchmarks.versions ../before --pairs 7

A ratio is this one's time over the other one's: below 1 this one is faster. Memory is the peak over
what the process held before, each in a process of its own.
"""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

import lightning_vivit
from benchmarks.measure import compare, peak_memory
from benchmarks.workloads import SHORT, Workload, build

OTHER = "lightning_vivit_other"
KERNELS = ("cnn", "wide")
Task = Callable[[], Tensor]


def other_version(checkout: Path) -> ModuleType:
    """The package of another checkout under a name of its own."""
    folder = Path(tempfile.mkdtemp())
    source = checkout / "lightning_vivit"
    for path in source.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            copy = folder / OTHER / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            text = path.read_bytes()
            copy.write_bytes(text.replace(b"lightning_vivit", OTHER.encode()))
    sys.path.insert(0, str(folder))
    return importlib.import_module(OTHER)


def task(package: ModuleType, work: Workload, kind: str) -> Task:
    """A kernel, or the top 10 eigenpairs with slopes and curvatures, by Gram matrix or without."""
    if kind == "kernel":
        split = work.split or len(work.inputs) // 2
        left, right = work.inputs[:split], work.inputs[split:]
        return lambda: package.empirical_ntk(work.model, left, right)

    def run() -> Tensor:
        problem = package.Problem(work.model, F.cross_entropy, work.inputs, work.targets)
        found = package.evaluate(problem, kernel=False, method=kind, k=10, tol=1e-2)
        found.eigenvectors(k=10)
        return found.directions(k=10).eigenvalues

    return run


def tasks(short: str) -> list[str]:
    return ["kernel"] if short in KERNELS else ["gram", "matrix_free"]


def memory(checkout: Path, short: str, kind: str, threads: int, other: bool) -> float:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.versions", str(checkout)]
    command += ["--workload", short, "--memory", kind, "--threads", str(threads)]
    done = subprocess.run(
        [*command, *(["--other"] if other else [])], capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return float(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.versions", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("checkout", type=Path, help="the other checkout")
    parser.add_argument("--workload", nargs="+", choices=list(SHORT), default=list(SHORT))
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--limit", type=float, default=60, help="seconds for each comparison")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory", help="print the peak memory of a task and stop")
    parser.add_argument("--other", action="store_true", help="that of the other checkout")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device("cpu")
    if options.memory:
        package = other_version(options.checkout) if options.other else lightning_vivit
        task(package, build("mlp"), "gram")()  # loads the libraries
        print(peak_memory(task(package, build(options.workload[0]), options.memory), device))
        return
    other = other_version(options.checkout)
    print("| workload | task | this | other | ratio | memory | other | apart by |")
    print("|---|---|---|---|---|---|---|---|")
    for short in options.workload:
        for kind in tasks(short):
            ours, theirs = (
                task(package, build(short), kind) for package in (lightning_vivit, other)
            )
            found = compare(ours, theirs, device, options.pairs, options.limit)
            used = [
                memory(options.checkout, short, kind, options.threads, flag)
                for flag in (False, True)
            ]
            print(
                f"| {SHORT[short]} | {kind} | {found.ours:.3f} s | {found.other:.3f} s | "
                f"{1 / found.ratio:.2f} | {used[0]:.0f} MiB | {used[1]:.0f} MiB | "
                f"{found.deviation:.0e} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
