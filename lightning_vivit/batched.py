"""Vector-Jacobian products for many cotangents at once."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_vivit.axes import SampleAxis


def batched_grad(
    outputs: Sequence[Tensor], inputs: Sequence[Any], columns: Sequence[Tensor]
) -> list[Tensor | None]:
    """Gradients for K cotangents in one pass, or one by one where an operation cannot batch.

    Args:
        outputs: Tensors of the graph; the graph is kept.
        inputs: Tensors or gradient edges.
        columns: For each output, K cotangents [K, *output shape].

    Returns:
        For each input [K, *shape], or None where it does not influence the outputs.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="There is a performance drop")
            return list(
                torch.autograd.grad(
                    outputs,
                    inputs,
                    columns,
                    retain_graph=True,
                    allow_unused=True,
                    is_grads_batched=True,
                )
            )
    except RuntimeError as error:
        if "out of memory" in str(error):
            raise
        return _one_by_one(outputs, inputs, columns)


def _one_by_one(
    outputs: Sequence[Tensor], inputs: Sequence[Any], columns: Sequence[Tensor]
) -> list[Tensor | None]:
    rows = [
        torch.autograd.grad(outputs, inputs, cotangents, retain_graph=True, allow_unused=True)
        for cotangents in zip(*columns, strict=True)
    ]
    found: list[Tensor | None] = []
    for parts in zip(*rows, strict=True):
        found.append(None if any(part is None for part in parts) else torch.stack(parts))
    return found


def sample_columns(
    outputs: Tensor, edges: Sequence[Any], axes: Sequence[SampleAxis], columns: Tensor
) -> list[Tensor | None]:
    """Backpropagate columns to many places of the graph, with the samples moved to the front.

    On a CPU one column at a time is as fast as a batch of them or faster (convolutions cannot be
    batched over columns there), and needs less memory; on an accelerator they go in one batch.

    Args:
        outputs: The differentiated outputs; the graph is kept.
        edges: Gradient edges.
        axes: For each edge, where the samples are.
        columns: [D, *outputs shape].

    Returns:
        For each edge [N, D, *shape] with the positions T left on the sample axis, or None where
        the edge does not influence the outputs.
    """
    if outputs.device.type != "cpu":
        grads = batched_grad([outputs], edges, [columns])
        return [
            None if grad is None else axis.split(grad, leading=1)
            for grad, axis in zip(grads, axes, strict=True)
        ]
    found: list[Tensor | None] = [None] * len(edges)
    for place, column in enumerate(columns):
        grads = list(
            torch.autograd.grad(outputs, edges, column, retain_graph=True, allow_unused=True)
        )
        for index, axis in enumerate(axes):
            grad, grads[index] = grads[index], None
            if grad is None:
                continue
            part = axis.split(grad)
            buffer = found[index]
            if buffer is None:
                buffer = part.new_empty(part.shape[0], columns.shape[0], *part.shape[1:])
                found[index] = buffer
            buffer[:, place] = part
    return found
