"""Prove where the samples are: backpropagate from parts of the batch alone.

The samples are numbered in binary. For each bit, one cotangent comes from the samples that have
it and one from those that do not. An entry of a recorded operation's output gradient that belongs
to sample n alone is nonzero only in the cotangents that n takes part in, for every bit; an entry
that receives both cotangents of a bit receives gradients from different samples: they interact.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_vivit.samples.axis import SampleAxis, candidate_axes

_SEED = 20221


@dataclass(frozen=True)
class Probe:
    """Random cotangents of the whole batch.

    Attributes:
        columns: [2, *outputs shape]: the first times a random number for each sample, the second.
        weights: [N], those numbers; zero excluded.
        coefficients: [N, D, 2], the columns by sample.
    """

    columns: Tensor
    weights: Tensor
    coefficients: Tensor


def make_probe(outputs: Tensor, axis: SampleAxis) -> Probe:
    """Seeded probe cotangents, the same in every process.

    Args:
        outputs: The model's outputs.
        axis: Where the samples are in the outputs.

    Returns:
        The probe. A factor whose rows, weighted by sample, give autograd's gradients of the
        weighted cotangent has every row at its own sample (with probability one).
    """
    generator = torch.Generator().manual_seed(_SEED)
    noise = torch.rand(outputs.shape, generator=generator, dtype=torch.float64) + 0.5
    signs = torch.randint(0, 2, outputs.shape, generator=generator) * 2 - 1
    plain = (noise * signs).to(outputs)
    weights = torch.rand(axis.num_samples, generator=generator, dtype=torch.float64) + 0.5
    weights = (weights * (torch.arange(axis.num_samples) % 2 * 2 - 1)).to(outputs)
    split = axis.split(plain)  # [N, ...], a view or a copy
    weighted = torch.empty_like(plain)
    for sample, weight in enumerate(weights):
        axis.select(weighted, sample).copy_(axis.select(plain, sample) * weight)
    both = torch.stack([weights[:, None] * split.flatten(1), split.flatten(1)], dim=2)
    return Probe(torch.stack([weighted, plain]), weights, both)


def halves(outputs: Tensor, axis: SampleAxis) -> Iterator[tuple[Tensor, Tensor]]:
    """For each bit of the sample numbers, the cotangents of those without and with it.

    Args:
        outputs: The model's outputs.
        axis: Where the samples are in the outputs.

    Yields:
        [2, *outputs shape], and [N], the half that each sample is in: 0 or 1.
    """
    plain = make_probe(outputs, axis).columns[1]
    numbers = torch.arange(axis.num_samples, device=outputs.device)
    for bit in range(max(1, (axis.num_samples - 1).bit_length())):
        member = (numbers >> bit) & 1
        columns = torch.zeros(2, *outputs.shape, dtype=outputs.dtype, device=outputs.device)
        for sample, half in enumerate(member.tolist()):
            axis.select(columns[half], sample).copy_(axis.select(plain, sample))
        yield columns, member


class Place:
    """One output of an operation, narrowed down half by half.

    Attributes:
        can_hold: Whether there is an axis with room for the samples.
        axes: The sample axes that agree with all gradients so far, the usual places first.
        mixed: Whether an entry received gradients from different samples, though there is an
            axis that could hold the samples.
        seen: [N] for the first of `axes`: whether a gradient of the sample was seen.
    """

    def __init__(self, shape: torch.Size, num_samples: int) -> None:
        self.axes = candidate_axes(tuple(shape), num_samples)
        self.can_hold = bool(self.axes)
        self.mixed = False
        self.seen: dict[SampleAxis, Tensor] = {}

    def look(self, grads: Tensor, member: Tensor) -> None:
        """Take the gradients of two halves.

        Args:
            grads: [2, *shape].
            member: [N], the half that each sample is in.
        """
        live = grads != 0
        if self.can_hold and not self.mixed:
            self.mixed = bool((live[0] & live[1]).any())
        kept = []
        for axis in self.axes:
            by_sample = axis.split(live, leading=1).flatten(2).any(2)  # [N, 2]
            foreign = by_sample.gather(1, (1 - member)[:, None])
            if not bool(foreign.any()):
                kept.append(axis)
                seen = by_sample.any(1)
                self.seen[axis] = seen | self.seen[axis] if axis in self.seen else seen
        self.axes = kept

    def certain(self) -> bool:
        """Whether every sample sent a gradient, so that the axis cannot be another one."""
        return not self.axes or bool(self.seen[self.axes[0]].all())


def mismatch(expected: Tensor | None, found: Tensor | None, floor: float) -> float:
    """Relative difference of [K, *shape] gradients, the worst of the K cotangents.

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
    count = expected.shape[0]
    difference = (expected - found).reshape(count, -1).norm(dim=1).max()
    scale = max(float(expected.reshape(count, -1).norm(dim=1).max()), floor)
    return float(difference) / scale if scale > 0 else float(difference)


def tolerance(tensors: Sequence[Tensor]) -> float:
    """How far the factors may be from autograd before they are not trusted."""
    single = any(tensor.dtype != torch.float64 for tensor in tensors)
    return 1e-3 if single else 1e-8
