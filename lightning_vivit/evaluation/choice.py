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
from weakref import WeakKeyDictionary

import torch
from torch import nn

from lightning_vivit.evaluation.request import Request
from lightning_vivit.factors.planning import Size, multiplications_per_second, predicted_costs
from lightning_vivit.machine.memory import default_budget
from lightning_vivit.problem.problem import Problem, Recording
from lightning_vivit.samples.batch import tensors_in

FEW_ROWS = 2048
_STEPS_PER_PRODUCT = 1.5  # 1.3 measured on GPTs and on a small CNN, with the search itself
_EIGENVALUES = 4.0  # multiplications per entry cubed, in float64
_log = logging.getLogger(__name__)
_SAID: set[str] = set()


@dataclass(frozen=True)
class Costs:
    """What both methods need, as far as a recording tells.

    Attributes:
        samples: N.
        depth: D, or the columns of each sample where these are backpropagated.
        gram: Multiplications of the Gram matrix.
        step: Multiplications of a training step.
        gram_bytes: Memory of the Gram matrix and its columns.
        device: Of the outputs.
        dtype: Of the outputs.
    """

    samples: int
    depth: int
    gram: float
    step: float
    gram_bytes: int
    device: torch.device
    dtype: torch.dtype

    def free(self, k: int) -> float:
        """Multiplications of the matrix-free search."""
        return expected_products(k) * _STEPS_PER_PRODUCT * self.step


# Costs of what went without a Gram matrix, by parameters and shapes of the inputs: a batch like an
# earlier one need not be recorded for the choice.
_KNOWN: WeakKeyDictionary[nn.Module, dict[tuple[object, ...], Costs]] = WeakKeyDictionary()


def expected_products(k: int) -> int:
    """Products of a search from a cold start: 20 to 45 were seen for k = 5, 34 to 60 for k = 10."""
    return 14 + 3 * k


def known_choice(problem: Problem, names: Sequence[str], request: Request) -> str | None:
    """Choose for a batch like an earlier one that went without a Gram matrix.

    Args:
        problem: What is differentiated.
        names: The parameters that are wanted.
        request: What is wanted.

    Returns:
        ``matrix_free``, or None if the forward pass has to be recorded for the choice.
    """
    costs = _KNOWN.get(problem.model, {}).get(_key(problem, names, request))
    if costs is None or _decide(costs, request)[0] == "gram":
        return None
    return "matrix_free"


def choose_method(
    problem: Problem, recording: Recording, names: Sequence[str], request: Request
) -> str:
    """Choose by predicted cost.

    Args:
        problem: What is differentiated.
        recording: Its forward pass.
        names: The parameters that are wanted.
        request: What is wanted; the NTK, only the Gram matrix has.

    Returns:
        ``gram`` or ``matrix_free``; logged with the reason, once for each outcome.
    """
    costs = _costs(recording, names, request)
    method, reason = _decide(costs, request)
    k = request.k
    if method == "matrix_free":
        _KNOWN.setdefault(problem.model, {})[_key(problem, names, request)] = costs
    rows = costs.samples * costs.depth
    if f"{method}{rows}{k}" not in _SAID:
        _SAID.add(f"{method}{rows}{k}")
        speed = multiplications_per_second(costs.device, costs.dtype)
        _log.info(
            "method='auto' takes %s: %s. %d samples x %d columns = %d rows; predicted %.2g s and "
            "%d MiB for the Gram matrix, %.2g s for %d matrix-free products.",
            method,
            reason,
            costs.samples,
            costs.depth,
            rows,
            costs.gram / speed,
            costs.gram_bytes >> 20,
            costs.free(k) / speed,
            expected_products(k),
        )
    return method


def _decide(costs: Costs, request: Request) -> tuple[str, str]:
    """The method and the reason."""
    budget = default_budget(costs.device) if request.max_memory is None else request.max_memory
    if request.kernel:
        return "gram", "the NTK is asked for"
    if costs.gram_bytes > budget:
        return "matrix_free", "the Gram matrix does not fit into memory"
    if costs.samples * costs.depth <= FEW_ROWS:
        return "gram", "the Gram matrix is small and gives the whole spectrum"
    if costs.gram <= costs.free(request.k):
        return "gram", "it is predicted to be faster"
    return "matrix_free", "it is predicted to be faster"


def _key(problem: Problem, names: Sequence[str], request: Request) -> tuple[object, ...]:
    parameters = problem.trainable()
    sizes = tuple(parameters[name].numel() for name in names)
    shapes = tuple(tensor.shape for tensor in tensors_in(problem.inputs))
    own = request.own_columns
    return tuple(names), sizes, shapes, problem.dtype, problem.has_loss, own


def _costs(recording: Recording, names: Sequence[str], request: Request) -> Costs:
    outputs, count = recording.outputs, recording.batch_size
    count = outputs.shape[0] if outputs.shape[0] % count else count
    depth = outputs.numel() // count
    if request.own_columns:
        depth = request.chosen_matrix.columns(depth)
    rows = count * depth
    step, contraction = _layers(recording, names, count, depth)
    gram = 2 / 3 * depth * step + contraction + _EIGENVALUES * float(rows) ** 3
    itemsize = outputs.element_size()
    size = rows**2 * (2 * itemsize + 8) + depth * outputs.numel() * itemsize
    return Costs(count, depth, gram, step, size, outputs.device, outputs.dtype)


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
