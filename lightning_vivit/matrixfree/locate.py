"""Which rows of the outputs belong to which sample, where nothing is backpropagated to find out."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_vivit.errors import InteractionError
from lightning_vivit.jacobian.proof import refuse_mixing
from lightning_vivit.jacobian.trust import Proofs, signature
from lightning_vivit.problem.problem import Problem, Recording
from lightning_vivit.samples.layout import SampleLayout

_LAYOUTS: Proofs[SampleLayout] = Proofs()


def locate(problem: Problem, recording: Recording) -> SampleLayout:
    """Which rows of the outputs belong to which sample, found by running one sample alone.

    That is remembered, and tried again from time to time.

    Args:
        problem: The problem that was recorded.
        recording: Its recording.

    Returns:
        The layout of the outputs.

    Raises:
        InteractionError: The sample's outputs are others than in the batch.
    """
    count, outputs = recording.batch_size, recording.outputs.detach()
    refuse_mixing(recording.tape, count)
    rows = outputs.shape[0]
    if rows % count:
        return SampleLayout(rows)  # each row is a sample of its own
    if count == 1:
        return SampleLayout(1)
    key = (*signature(recording.tape, outputs, problem.model), count)
    return _LAYOUTS.get(problem.model, key, lambda: (_located(problem, outputs, count), True))


def _located(problem: Problem, outputs: Tensor, count: int) -> SampleLayout:
    rows = outputs.shape[0]
    last = problem.num_samples - 1
    with problem.part(last, last + 1).recorded() as alone:
        single = alone.outputs.detach()
    positions = rows // count
    for layout in (SampleLayout(count), SampleLayout(count, minor=True)):
        own = layout.split(outputs)[last]
        if single.shape[0] == positions and _equal(own, single):
            return layout
    raise InteractionError(
        "The last sample has other outputs alone than in the batch, so the samples influence each "
        "other (or the model is random). Slopes and curvatures of single samples are then not "
        "defined. Put the model in eval mode, or normalise without the batch."
    )


def _equal(first: Tensor, second: Tensor) -> bool:
    if first.shape != second.shape:
        return False
    precise = first.dtype == torch.float64
    scale = float(first.abs().max())
    return bool(((first - second).abs() <= (1e-8 if precise else 1e-3) * scale + 1e-12).all())
