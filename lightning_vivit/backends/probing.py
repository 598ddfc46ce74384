"""Prove where the samples are: backpropagate from the first and from the last sample alone.

A recorded operation's output gradient is nonzero only in the slice of the sample that the
cotangent belongs to. The slice shows the sample axis; any other nonzero shows that samples
interact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_vivit.axes import SampleAxis, candidate_axes


@dataclass(frozen=True)
class Probe:
    """Random cotangents for the whole batch, for its first and for its last sample.

    Attributes:
        columns: [3, *outputs shape]: all samples, the first alone, the last alone.
        coefficients: [N, D, 3], the same by sample.
    """

    columns: Tensor
    coefficients: Tensor


def make_probe(outputs: Tensor, axis: SampleAxis) -> Probe:
    """Seeded probe cotangents, the same in every process.

    Args:
        outputs: The model's outputs.
        axis: Where the samples are in the outputs.

    Returns:
        The probe.
    """
    generator = torch.Generator().manual_seed(20221)
    noise = torch.rand(outputs.shape, generator=generator, dtype=torch.float64) + 0.5
    signs = torch.randint(0, 2, outputs.shape, generator=generator) * 2 - 1
    everything = (noise * signs).to(outputs)
    columns = torch.zeros(3, *outputs.shape, dtype=outputs.dtype, device=outputs.device)
    columns[0] = everything
    for place, sample in ((1, 0), (2, axis.num_samples - 1)):
        axis.select(columns[place], sample).copy_(axis.select(everything, sample))
    split = axis.split(columns, leading=1)  # [N, 3, ...]
    return Probe(columns, split.flatten(2).transpose(1, 2))


def find_axis(grads: Tensor, num_samples: int) -> SampleAxis | None:
    """The sample axis of an operation's output, from its gradients for the probe's cotangents.

    Args:
        grads: [3, *shape].
        num_samples: N.

    Returns:
        The axis, or None if no axis separates the first from the last sample.
    """
    shape = tuple(grads.shape[1:])
    for axis in candidate_axes(shape, num_samples):
        if num_samples == 1:
            return axis
        if _only(grads[1], axis, 0) and _only(grads[2], axis, num_samples - 1):
            return axis
    return None


def overlap(grads: Tensor) -> bool:
    """Whether some entry received a gradient from the first and from the last sample."""
    return bool(((grads[1] != 0) & (grads[2] != 0)).any())


def _only(grad: Tensor, axis: SampleAxis, sample: int) -> bool:
    inside = axis.select(grad, sample)
    return bool(torch.count_nonzero(grad) == torch.count_nonzero(inside))


def mismatch(expected: Tensor | None, found: Tensor | None, floor: float) -> float:
    """Relative difference of two [3, *shape] gradients, the worst of the three cotangents.

    Args:
        expected: Autograd's gradients.
        found: The factor's.
        floor: Differences are measured against at least this norm, because a gradient that
            vanishes (a bias before a normalisation) consists of rounding.

    Returns:
        The difference; infinite if one of the two is missing.
    """
    if expected is None or found is None:
        other = found if expected is None else expected
        return 0.0 if other is None or not bool(other.any()) else float("inf")
    difference = (expected - found).flatten(1).norm(dim=1).max()
    scale = max(float(expected.flatten(1).norm(dim=1).max()), floor)
    return float(difference) / scale if scale > 0 else float(difference)


def tolerance(tensors: Sequence[Tensor]) -> float:
    """How far the factors may be from autograd before they are not trusted."""
    single = any(tensor.dtype != torch.float64 for tensor in tensors)
    return 1e-3 if single else 1e-8
