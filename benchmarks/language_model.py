"""Top-5 GGN eigenvalues of a GPT with 50,000 tokens: time in training steps, products, memory.

Each method runs in a process of its own:
    python -m benchmarks.language_model                # all of them, one line of JSON each
    python -m benchmarks.language_model --only ours    # one
    python -m benchmarks.language_model --only products   # single products and training steps
Peers need the extra `benchmark`. curvlinops' GGN is given to scipy's eigsh at the same relative
tolerance. hessian-eigenthings' own Lanczos makes a fixed number of steps and says afterwards
whether its residuals are within the tolerance: --lanczos_steps is that number, chosen as small as
reached it (its default, 2 k, does not).
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_vivit import Problem, evaluate
from lightning_vivit.demo.gpt import GPT

METHODS = ("ours", "curvlinops", "eigenthings")
K = 5


class Flat(nn.Module):
    """Logits with one row for each token, as nn.CrossEntropyLoss takes them."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, index: Tensor) -> Tensor:
        return self.net(index).flatten(0, 1)


def batch(vocabulary: int, samples: int, window: int, seed: int) -> tuple[Tensor, Tensor]:
    """Tokens with the frequencies of words (Zipf), each followed by one that depends on it."""
    generator = torch.Generator().manual_seed(seed)
    weights = 1.0 / torch.arange(1, vocabulary + 1)
    index = torch.multinomial(weights, samples * window, True, generator=generator)
    index = index.reshape(samples, window)
    return index, ((index * 7 + 3) % vocabulary).flatten()


def step(model: nn.Module, optimizer: torch.optim.Optimizer, data: tuple[Tensor, Tensor]) -> float:
    begin = time.perf_counter()
    loss = nn.functional.cross_entropy(model(data[0]), data[1])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return time.perf_counter() - begin


def ours(model: nn.Module, data: tuple[Tensor, Tensor], tol: float, start=None, microbatch=None):
    problem = Problem(model, nn.CrossEntropyLoss(), *data)
    found = evaluate(
        problem, method="matrix_free", k=K, tol=tol, start=start, microbatch=microbatch
    )
    values = found.eigenvalues()
    return values, found.products, found


def curvlinops(model: nn.Module, data: tuple[Tensor, Tensor], tol: float):
    import numpy as np
    from curvlinops import GGNLinearOperator
    from scipy.sparse.linalg import LinearOperator, eigsh

    parameters = [p for p in model.parameters() if p.requires_grad]
    operator = GGNLinearOperator(
        model, nn.CrossEntropyLoss(), parameters, [data], check_deterministic=False
    ).to_scipy()
    count = 0

    def product(vector: np.ndarray) -> np.ndarray:
        nonlocal count
        count += 1
        return operator @ vector.astype(operator.dtype)

    counted = LinearOperator(operator.shape, product, dtype=operator.dtype)
    with sdpa_kernel(SDPBackend.MATH):
        values, _ = eigsh(counted, k=K, tol=tol, which="LA")
    return torch.from_numpy(np.sort(values)), count, None


def eigenthings(model: nn.Module, data: tuple[Tensor, Tensor], tol: float, steps: int):
    import hessian_eigenthings as het

    operator = het.GGNOperator(
        model,
        [data],
        het.supervised_forward,
        het.supervised_loss_of_output(nn.CrossEntropyLoss()),
    )
    with sdpa_kernel(SDPBackend.MATH):
        found = het.lanczos(operator, k=K, tol=tol, max_iter=steps, which="LA", seed=0)
    if not bool(found.converged.all()):
        print(f"not converged after {steps} steps: {found.residuals}", file=sys.stderr)
    return found.eigenvalues.sort().values[-K:], found.iterations, None


def alternate(model: nn.Module, data: tuple[Tensor, Tensor], rounds: int) -> dict[str, float]:
    """Training steps and single products in turn: medians in seconds, free of a machine's moods."""
    from curvlinops import GGNLinearOperator

    from lightning_vivit.matrices.ggn import GGN
    from lightning_vivit.matrixfree.products import Products

    parameters = dict(model.named_parameters())
    products = Products(Problem(model, nn.CrossEntropyLoss(), *data), list(parameters), GGN())
    space = products.space(list(parameters))
    operator = GGNLinearOperator(
        model,
        nn.CrossEntropyLoss(),
        list(parameters.values()),
        [data],
        check_deterministic=False,
    )
    vector = torch.randn(space.size)
    copy = deepcopy(model)  # its steps must not touch the graph that ours keeps
    optimizer = torch.optim.AdamW(copy.parameters(), lr=3e-4)

    def theirs() -> None:
        with sdpa_kernel(SDPBackend.MATH):
            operator @ vector

    tasks: dict[str, Callable[[], object]] = {
        "training step": lambda: step(copy, optimizer, data),
        "ours": lambda: products.multiply(space, vector.unsqueeze(0)),
        "curvlinops": theirs,
    }
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(rounds + 1):
        for name, task in tasks.items():
            begin = time.perf_counter()
            task()
            times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(found[1:]) for name, found in times.items()}


def peak() -> float:
    """GB that the process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def run(options: argparse.Namespace) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    net = GPT(options.vocabulary, options.width, 2, 4, options.window)
    model = Flat(net)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)

    def draw(seed: int) -> tuple[Tensor, Tensor]:
        return batch(options.vocabulary, options.samples, options.window, seed)

    times = [step(model, optimizer, draw(seed)) for seed in range(options.steps)]
    trained, data = peak(), draw(0)
    methods: dict[str, Callable[[], tuple]] = {
        "ours": lambda: ours(model, data, options.tol, microbatch=options.microbatch),
        "curvlinops": lambda: curvlinops(model, data, options.tol),
        "eigenthings": lambda: eigenthings(model, data, options.tol, options.lanczos_steps),
    }
    if options.only == "products":
        print(json.dumps(alternate(model, data, options.rounds)), flush=True)
        return
    begin = time.perf_counter()
    values, products, found = methods[options.only]()
    seconds = time.perf_counter() - begin
    times += [step(model, optimizer, draw(options.steps + i)) for i in range(options.between)]
    one = statistics.median(times[1:])
    result = {
        "method": options.only,
        "training_step_s": round(one, 3),
        "seconds": round(seconds, 2),
        "training_steps": round(seconds / one, 1),
        "products": products,
        "peak_gb": round(peak(), 2),
        "peak_of_training_gb": round(trained, 2),
        "eigenvalues": [round(float(value), 6) for value in values],
        "tol": options.tol,
        "threads": options.threads,
    }
    if found is not None:
        start = found.warm_start()
        del found
        begin = time.perf_counter()
        _, again, _ = ours(model, data, options.tol, start, options.microbatch)
        result["steps_between"] = options.between
        result["products_warm"] = again
        result["seconds_warm"] = round(time.perf_counter() - begin, 2)
    print(json.dumps(result), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=(*METHODS, "products"))
    parser.add_argument("--vocabulary", type=int, default=50_000)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--window", type=int, default=128)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--tol", type=float, default=1e-2)
    parser.add_argument("--lanczos_steps", type=int, default=26)
    parser.add_argument("--between", type=int, default=1, help="steps before the warm search")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--microbatch", type=int)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    if options.only:
        run(options)
        return
    for method in (*METHODS, "products"):
        arguments = [*sys.argv[1:], "--only", method]
        subprocess.run([sys.executable, "-m", "benchmarks.language_model", *arguments])


if __name__ == "__main__":
    main()
