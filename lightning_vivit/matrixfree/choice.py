"""Exact Gram matrix or matrix-free: decided from sizes and the memory budget, before either runs.

Costs are counted in multiplications of large matrix products. A Gram matrix costs a backward pass
for each output, the contraction of every layer and the eigenvalues of an N*D x N*D matrix;
matrix-free costs a number of products that depends on k. Up to 2048 rows the Gram matrix is taken
whatever it costs: it gives the whole spectrum. Monte-Carlo columns are never taken unasked: they
estimate another matrix than the one that was asked for, with an error that nothing shows.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from lightning_vivit.factors.planning import (
    Size,
    multiplications_per_second,
    predicted_costs,
)
from lightning_vivit.memory import default_budget
from lightning_vivit.problem import Recording
from lightning_vivit.recording import tensors_in

METHODS = ("auto", "gram", "mc", "matrix_free")
FEW_ROWS = 2048
_STEPS_PER_PRODUCT = 1.5  # 1.3 measured on GPTs and on a small CNN, with the search itself
_EIGENVALUES = 4.0  # multiplications per entry cubed, in float64
_log = logging.getLogger(__name__)
_SAID: set[str] = set()


@dataclass(frozen=True)
class Choice:
    """What was chosen, and why.

    Attributes:
        method: ``gram`` or ``matrix_free``.
        gram_cost: Multiplications of the Gram matrix.
        free_cost: Multiplications of the matrix-free search.
        gram_bytes: Memory of the Gram matrix and its columns.
        reason: For the log.
    """

    method: str
    gram_cost: float
    free_cost: float
    gram_bytes: int
    reason: str


def expected_products(k: int) -> int:
    """Products of a search from a cold start: 20 to 45 were seen for k = 5, 34 to 60 for k = 10."""
    return 14 + 3 * k


def choose_method(
    recording: Recording, names: Sequence[str], k: int, kernel: bool, max_memory: int | None
) -> Choice:
    """Choose by predicted cost.

    Args:
        recording: A forward pass.
        names: The parameters that are wanted.
        k: Eigenpairs that are wanted.
        kernel: Whether the NTK is asked for, which only the Gram matrix has.
        max_memory: Budget in bytes; None for half of what is free.

    Returns:
        The choice; it is also logged, once for each outcome.
    """
    outputs, count = recording.outputs, recording.batch_size
    count = outputs.shape[0] if outputs.shape[0] % count else count
    depth = outputs.numel() // count
    rows = count * depth
    step, contraction = _layers(recording, names, count, depth)
    gram = 2 / 3 * depth * step + contraction + _EIGENVALUES * float(rows) ** 3
    free = expected_products(k) * _STEPS_PER_PRODUCT * step
    itemsize = outputs.element_size()
    size = rows**2 * (2 * itemsize + 8) + depth * outputs.numel() * itemsize
    budget = default_budget(outputs.device) if max_memory is None else max_memory
    if kernel:
        method, reason = "gram", "the NTK is asked for"
    elif size > budget:
        method, reason = "matrix_free", "the Gram matrix does not fit into memory"
    elif rows <= FEW_ROWS:
        method, reason = "gram", "the Gram matrix is small and gives the whole spectrum"
    elif gram <= free:
        method, reason = "gram", "it is predicted to be faster"
    else:
        method, reason = "matrix_free", "it is predicted to be faster"
    choice = Choice(method, gram, free, size, reason)
    if f"{method}{rows}{k}" not in _SAID:
        _SAID.add(f"{method}{rows}{k}")
        speed = multiplications_per_second(outputs.device, outputs.dtype)
        _log.info(
            "method='auto' takes %s: %s. %d samples x %d outputs = %d rows; predicted %.2g s and "
            "%d MiB for the Gram matrix, %.2g s for %d matrix-free products.",
            method,
            reason,
            count,
            depth,
            rows,
            gram / speed,
            size >> 20,
            free / speed,
            expected_products(k),
        )
    return choice


def _layers(
    recording: Recording, names: Sequence[str], count: int, depth: int
) -> tuple[float, float]:
    """Multiplications of a training step, and of the contraction of all layers."""
    known = {id(recording.tape.parameters[name]): name for name in names}
    step, contraction = 0.0, 0.0
    for call in recording.tape.calls:
        entries = sum(output.shape.numel() for output in call.outputs if output is not None)
        for tensor in tensors_in((call.args, dict(call.kwargs))):
            if id(tensor) not in known or not isinstance(tensor, nn.Parameter):
                continue
            if tensor.ndim < 2 or call.name == "embedding":
                continue
            outs = tensor.shape[0]
            inner = tensor.numel() // outs
            step += 3.0 * entries * inner
            length = max(1, entries // (count * outs))
            size = Size(count, count, depth, depth, 1, outs, inner, length, True, "full")
            contraction += min(predicted_costs(size).values())
    return max(step, 1.0), contraction
