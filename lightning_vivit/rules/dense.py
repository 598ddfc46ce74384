"""The rule for every other operation: rows by autograd through that one operation.

Correct for any operation whose output has a sample axis. It costs N times the work of a rule,
but only for the one operation, not for the network.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_vivit.factors import Dense, Factor
from lightning_vivit.problem.tape.cotangents import batched_grad
from lightning_vivit.problem.tape.recorder import Call
from lightning_vivit.samples.axis import SampleAxis
from lightning_vivit.samples.batch import tensors_in


def dense_rule(
    call: Call,
    columns: list[Tensor | None],
    axes: list[SampleAxis | None],
    sources: frozenset[int],
) -> list[tuple[Tensor, Factor]]:
    """Rows of all parameters of one call.

    Args:
        call: The recorded operation, with any number of outputs.
        columns: For each output, [N, D, *output shape] with the positions T on the sample axis,
            or None where nothing arrived.
        axes: For each output, where the samples are.
        sources: ids of the tensors for which factors are wanted.

    Returns:
        Dense factors.
    """
    wanted = {id(t): t for t in [*tensors_in(call.args), *tensors_in(call.kwargs)]}
    wanted = {key: tensor for key, tensor in wanted.items() if key in sources}
    leaves = {key: tensor.detach().clone().requires_grad_() for key, tensor in wanted.items()}
    results = _run_again(call, leaves)
    live = [
        (result, column, axis)
        for result, column, axis in zip(results, columns, axes, strict=True)
        if column is not None and axis is not None
    ]
    count = live[0][2].num_samples
    pieces: dict[int, list[Tensor]] = {key: [] for key in leaves}
    for sample in range(count):
        masked = []
        for result, column, axis in live:
            mask = column.new_zeros(column.shape[1], *result.shape)
            axis.select(mask, sample, leading=1).copy_(column[sample])
            masked.append(mask)
        grads = batched_grad([item[0] for item in live], list(leaves.values()), masked)
        for key, grad in zip(leaves, grads, strict=True):
            depth = masked[0].shape[0]
            if grad is None:
                grad = leaves[key].new_zeros(depth, *leaves[key].shape)
            pieces[key].append(grad.reshape(depth, -1))
    return [
        (wanted[key], Dense(torch.stack(rows), torch.Size(wanted[key].shape)))
        for key, rows in pieces.items()
    ]


def _run_again(call: Call, leaves: dict[int, Tensor]) -> list[Tensor]:
    """The operation on detached data, with fresh leaves for the parameters."""

    def swap(value: Any) -> Any:
        if isinstance(value, Tensor):
            leaf = leaves.get(id(value))
            return value.detach().clone() if leaf is None else leaf
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*(swap(item) for item in value))
        if isinstance(value, (list, tuple)):
            return type(value)(swap(item) for item in value)
        if isinstance(value, dict):
            return {name: swap(item) for name, item in value.items()}
        return value

    with torch.enable_grad():
        result = call.function(*swap(call.args), **swap(dict(call.kwargs)))
    return list(tensors_in(result))
