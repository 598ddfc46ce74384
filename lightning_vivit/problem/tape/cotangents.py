"""Vector-Jacobian products for many cotangents at once."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


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
        if any(part is None for part in parts):
            found.append(None)
        else:  # an embedding may give sparse gradients
            found.append(torch.stack([p.to_dense() if p.is_sparse else p for p in parts]))
    return found
