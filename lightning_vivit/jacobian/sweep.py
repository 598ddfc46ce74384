"""Backward sweeps: bring columns to the recorded operations.

On a CPU one column at a time is as fast as a batch of them or faster, because convolutions cannot
be batched over columns there; each `Collector` turns what arrives into factors meanwhile. On an
accelerator all columns go in one batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from lightning_vivit.jacobian.collector import Collector
from lightning_vivit.problem.tape.cotangents import batched_grad


def sweep(
    outputs: Tensor | None,
    edges: Sequence[Sequence[GradientEdge]],
    columns: Tensor | Sequence[Tensor],
    collectors: Sequence[Collector],
    known: Sequence[list[Tensor] | None] | None = None,
) -> None:
    """Backpropagate columns to the operations.

    Args:
        outputs: What the columns start from, the graph is kept; None if all is known.
        edges: For each collector, the gradient edges of its operation's outputs that have an axis.
        columns: D cotangents [*outputs shape].
        collectors: They take what arrives.
        known: For each collector, D cotangents of its operation's only output that need no sweep,
            or None.
    """
    given: Sequence[list[Tensor] | None] = [None] * len(collectors) if known is None else known
    flat = [edge for group, own in zip(edges, given, strict=True) if own is None for edge in group]
    if outputs is not None and outputs.device.type != "cpu":
        whole = columns if isinstance(columns, Tensor) else torch.stack(list(columns))
        grads = batched_grad([outputs], flat, [whole]) if flat else []
        _deliver(collectors, grads, [None if own is None else torch.stack(own) for own in given])
        return
    depth = max([len(columns), *(len(own) for own in given if own is not None)])
    waiting = [
        (collector, own)
        for collector, own in zip(collectors, given, strict=True)
        if own is None or not collector.add_shared(own)
    ]
    collectors, given = [one for one, _ in waiting], [own for _, own in waiting]
    for place in range(depth):
        arrived: list[Tensor | None] = []
        if flat and outputs is not None:
            arrived += torch.autograd.grad(
                outputs, flat, columns[place], retain_graph=True, allow_unused=True
            )
        else:
            arrived += [None] * len(flat)
        _deliver(collectors, arrived, [None if own is None else own[place] for own in given], place)


def _deliver(
    collectors: Sequence[Collector],
    grads: list[Tensor | None],
    known: Sequence[Tensor | None],
    place: int | None = None,
) -> None:
    position = 0
    for collector, own in zip(collectors, known, strict=True):
        parts: list[Tensor | None] = []
        for axis in collector.axes:
            if axis is None or own is not None:
                parts.append(own)
                continue
            parts.append(grads[position])
            grads[position] = None  # freed as soon as it is taken
            position += 1
        if place is None:
            collector.add_all(parts)
        else:
            collector.add(place, parts)
