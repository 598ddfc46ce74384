"""The operations after the last nonlinearity, backpropagated once for all samples.

There the Jacobian does not depend on the data, so that columns that are the same for all samples
stay so. One backward pass over the N samples then brings N different columns through: sample n
carries column n. What arrives at the first of these operations' input is where the sweeps over the
rest of the network start.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from lightning_vivit.problem.tape.recorder import Call, Tape
from lightning_vivit.samples.axis import SampleAxis

_LINEAR: set[Callable[..., Any]] = {F.linear, F.conv1d, F.conv2d, F.conv3d}
_SHAPES = {  # operations that move entries or average them, the same way for every sample
    "ViewBackward0",
    "UnsafeViewBackward0",
    "ReshapeAliasBackward0",
    "UnsqueezeBackward0",
    "SqueezeBackward1",
    "CloneBackward0",
    "MeanBackward1",
    "AvgPool1DBackward0",
    "AvgPool2DBackward0",
    "AvgPool3DBackward0",
    "AdaptiveAvgPool2DBackward0",
    "MkldnnAdaptiveAvgPool2DBackward0",
}
_AGREEMENT = 1e-3  # relative, of samples that carry the same column


@dataclass(frozen=True)
class Tail:
    """What arrives at the operations after the last nonlinearity.

    Attributes:
        inputs: The input of the first of them, where other sweeps start; None if it is data.
        columns: D cotangents of `inputs`, each the same for all samples (views).
        arrived: Index of the operation -> D cotangents of its output.
    """

    inputs: Tensor | None
    columns: list[Tensor]
    arrived: dict[int, list[Tensor]]


def shared_tail(
    tape: Tape,
    outputs: Tensor,
    axis: SampleAxis,
    axes: Sequence[Sequence[SampleAxis | None]],
    columns: Tensor,
) -> Tail | None:
    """Backpropagate columns through the operations after the last nonlinearity.

    Args:
        tape: The recording.
        outputs: The differentiated outputs.
        axis: Where the samples are in them.
        axes: For each call, the sample axis of each output.
        columns: [D, *outputs shape].

    Returns:
        What arrives, or None if there is nothing to share: no such operation, or columns that
        differ between the samples.
    """
    n, count = axis.num_samples, columns.shape[0]
    if n == 1 or not _is_first(axis, n):
        return None
    calls = _linear_calls(tape, outputs, axes, n)
    split = columns.reshape(count, n, -1)
    if not calls or not bool((split == split[:, :1]).all()):
        return None
    inputs: Tensor | None = _operands(tape.calls[calls[-1]])[0]
    places = [tape.calls[index].outputs[0] for index in calls]
    targets = [place.edge for place in places if place is not None]
    if inputs is not None and inputs.requires_grad:
        targets.append(get_gradient_edge(inputs))
    else:
        inputs = None
    found: list[list[Tensor]] = [[] for _ in targets]
    for start in range(0, count, n):
        carried = (start + torch.arange(n, device=columns.device)) % count
        cotangent = split[carried, 0].reshape(outputs.shape)
        grads = torch.autograd.grad(
            outputs, targets, cotangent, retain_graph=True, allow_unused=True
        )
        if any(grad is None for grad in grads):
            return None
        for known, grad in zip(found, grads, strict=True):
            new = min(n, count - start)
            for sample in range(new):
                known.append(_for_all(grad, sample, n))
            if new < n:
                again = grad.unflatten(0, (n, -1))[new:]
                if start == 0:  # those before them, one period of the columns earlier
                    first = grad.unflatten(0, (n, -1))[: n - new]
                else:
                    each = again.shape[1]
                    first = torch.stack([known[column][:each] for column in carried[new:].tolist()])
                if not _agree(again, first):
                    return None
    arrived = dict(zip(calls, found, strict=False))
    return Tail(inputs, found[-1] if inputs is not None else [], arrived)


def _linear_calls(
    tape: Tape, outputs: Tensor, axes: Sequence[Sequence[SampleAxis | None]], n: int
) -> list[int]:
    """Indices of the operations on the only way back from the outputs, the last one first."""
    sources = {id(parameter) for parameter in tape.parameters.values()} | set(tape.derived)
    ends = {
        call.outputs[0].edge.node: index
        for index, call in enumerate(tape.calls)
        if len(call.outputs) == 1 and call.outputs[0] is not None
    }
    calls: list[int] = []
    node = outputs.grad_fn
    while node is not None:
        index = ends.get(node)
        if index is not None:
            call, place = tape.calls[index], axes[index][0]
            inputs, weight = _operands(call)
            fits = place is not None and _is_first(place, n) and inputs is not None
            if not fits or id(weight) not in sources or id(inputs) in sources or call.is_complex:
                break
            calls.append(index)
            assert inputs is not None
            node = inputs.grad_fn
            continue
        following = [function for function, _ in node.next_functions if function is not None]
        node = following[0] if node.name() in _SHAPES and len(following) == 1 else None
    return calls


def _operands(call: Call) -> tuple[Tensor | None, Tensor | None]:
    """Input and weight of a linear operation; None, None for another."""
    if call.function not in _LINEAR:
        return None, None
    given = dict(zip(("input", "weight"), call.args, strict=False)) | dict(call.kwargs)
    return given.get("input"), given.get("weight")


def _is_first(axis: SampleAxis, n: int) -> bool:
    return axis.dim == 0 and axis.num_samples == n and not axis.minor


def _for_all(grad: Tensor, sample: int, n: int) -> Tensor:
    """One sample's part of [N*T, ...], for all samples."""
    each = grad.shape[0] // n
    own = grad[sample * each : (sample + 1) * each]
    if each == 1:
        return own.expand(n, *own.shape[1:])
    return own.unsqueeze(0).expand(n, *own.shape).reshape(grad.shape)


def _agree(again: Tensor, first: Tensor) -> bool:
    """Whether samples that carried the same column got the same; data would make a difference.

    Args:
        again: [S, T, ...], what arrived for the samples that carry a column once more.
        first: The same for samples that carried it before.
    """
    if torch.equal(again, first):
        return True
    axes = tuple(range(1, first.ndim))
    apart = (again - first).abs().amax(axes)
    return bool((apart <= _AGREEMENT * first.abs().amax(axes)).all())


__all__ = ["Tail", "shared_tail"]
