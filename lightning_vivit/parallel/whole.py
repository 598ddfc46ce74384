"""One batch over all ranks: whose samples are where, and the loss of all of them.

The loss of the whole batch is not the mean of the ranks' losses: class weights, ignored targets and
parts of different size change what it divides by. So each rank sends the outputs and the targets of
its samples, which are small, and every rank states the loss of all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from lightning_vivit.errors import ProblemError
from lightning_vivit.jacobian.structure import Structure
from lightning_vivit.losses import LossCall
from lightning_vivit.parallel.ranks import Ranks
from lightning_vivit.problem.problem import Problem, Recording
from lightning_vivit.samples.batch import leaves_in, map_leaves
from lightning_vivit.samples.layout import SampleLayout

_T = TypeVar("_T")


@dataclass(frozen=True)
class Part:
    """One rank's part of a batch.

    Attributes:
        ranks: All ranks.
        borrowed: Whether the part is a stand-in, because there are fewer samples than ranks.
        whole: States the problem of all samples; needed only for losses that divide by something
            that their functional does not know.
    """

    ranks: Ranks
    borrowed: bool
    whole: Callable[[], Problem]


@dataclass(frozen=True)
class Whole:
    """All parts.

    Attributes:
        ranks: All ranks.
        counts: Samples of each rank.
        outputs: [N, D] of all samples, in the order of the ranks.
        call: The loss call of all samples.
        layout: Their layout.
        structure: The rank's structure, with the choices that all ranks have to make alike.
    """

    ranks: Ranks
    counts: list[int]
    outputs: Tensor
    call: LossCall | None
    layout: SampleLayout
    structure: Structure

    @property
    def num_samples(self) -> int:
        """N."""
        return sum(self.counts)

    def place(self, rank: int) -> slice:
        """Where the samples of a rank are."""
        start = sum(self.counts[:rank])
        return slice(start, start + self.counts[rank])

    def own(self, values: Tensor) -> Tensor:
        """The rows of this rank's samples; zeros for a stand-in.

        Args:
            values: [N, ...].

        Returns:
            [N_r, ...].
        """
        if self.counts[self.ranks.rank] == 0:
            return values.new_zeros(1, *values.shape[1:])
        return values[self.place(self.ranks.rank)]

    def on_first(self, solve: Callable[[], _T]) -> _T:
        """What rank 0 finds out, on all ranks.

        Eigenvectors may differ between processes in their signs or, where eigenvalues nearly
        coincide, altogether; sums over the ranks need the same ones.

        Args:
            solve: Called on rank 0; returns tensors.
        """
        moved = None
        if self.ranks.rank == 0:
            moved = map_leaves(lambda tensor: tensor.cpu(), solve())
        device = self.outputs.device
        return map_leaves(lambda tensor: tensor.to(device), self.ranks.first(moved))

    def add_up(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace tensors by their sums over the ranks, in place."""
        self.ranks.add_up(tensors)


@dataclass(frozen=True)
class _Sent:
    """What a rank tells the others."""

    count: int
    shape: tuple[int, ...]  # of the outputs of a sample, positions first
    minor: bool
    outputs: Tensor  # [N_r, T, ...]
    leaves: dict[int, Tensor]  # tensors of target and options with a row for each output row
    name: str | None
    multiplier: float | None  # None: the loss has to be stated on the whole batch
    dense: tuple[str, ...]
    unused: tuple[str, ...]


def join(part: Part, recording: Recording, layout: SampleLayout, structure: Structure) -> Whole:
    """Find out what the ranks have, and state the loss of all samples.

    Args:
        part: This rank's part.
        recording: Of the part.
        layout: Of the part's outputs.
        structure: Of the part.

    Returns:
        The whole batch.

    Raises:
        ProblemError: The parts do not fit together.
    """
    call, outputs = recording.loss, recording.outputs.detach()
    split = layout.split(outputs)
    stated = (None, {}) if call is None else (call.target, dict(call.options))
    leaves = list(leaves_in(stated))
    count = 0 if part.borrowed else layout.num_samples
    everyone: list[_Sent] = part.ranks.exchange(
        _Sent(
            count,
            tuple(split.shape[1:]),
            layout.minor,
            split[:count].cpu(),
            {i: layout.split(t.detach())[:count].cpu() for i, t in _per_row(call, leaves)},
            None if call is None else call.name,
            _multiplier(call),
            structure.dense,
            structure.unused,
        )
    )
    full = [sent for sent in everyone if sent.count]
    _check(everyone, full)
    structure = replace(
        structure,
        dense=tuple(sorted(set().union(*(sent.dense for sent in full)))),
        unused=tuple(sorted(set(structure.unused).intersection(*(sent.unused for sent in full)))),
    )
    counts = [sent.count for sent in everyone]
    whole = SampleLayout(sum(counts))
    together = torch.cat([sent.outputs for sent in full]).to(outputs.device)  # [N, T, ...]
    found = None
    if call is not None and all(sent.multiplier is not None for sent in full):
        for index in _shared_leaves(full):
            merged = whole.merge(torch.cat([sent.leaves[index] for sent in full]))
            leaves[index] = merged.to(outputs.device)
        remaining = iter(leaves)
        target, options = map_leaves(lambda _: next(remaining), stated)
        scale = sum(sent.multiplier or 0.0 for sent in full) / len(full)
        found = LossCall(call.name, whole.merge(together), target, options, scale)
    elif call is not None:
        whole = SampleLayout(whole.num_samples, any(sent.minor for sent in full))
        found = _stated_on_all(part.whole(), together, whole)
    return Whole(part.ranks, counts, together.flatten(1), found, whole, structure)


def _shared_leaves(full: Sequence[_Sent]) -> set[int]:
    """Indices of the tensors that have a row for each output row on all ranks."""
    return set(full[0].leaves).intersection(*(sent.leaves for sent in full))


def _per_row(call: LossCall | None, leaves: Sequence[Any]) -> list[tuple[int, Tensor]]:
    """Tensors of target and options with a row for each row of the outputs."""
    if call is None:
        return []
    rows, ndim = call.outputs.shape[0], call.outputs.ndim
    targets = len(list(leaves_in(call.target)))
    found = []
    for index, leaf in enumerate(leaves):
        if not isinstance(leaf, Tensor) or leaf.ndim == 0 or leaf.shape[0] != rows:
            continue
        broadcasts = index >= targets or call.name == "mse_loss"  # such as one weight per class
        if leaf.ndim == ndim or not broadcasts:
            found.append((index, leaf))
    return found


def _multiplier(call: LossCall | None) -> float | None:
    """The factor of the loss, if that of the whole batch is the same for sure."""
    if call is None:
        return 1.0
    if isinstance(call.multiplier, Tensor) and call.multiplier.ndim > 0:
        return None
    factor = float(call.multiplier)
    return factor if factor == 1.0 or call.options.get("reduction", "mean") == "mean" else None


def _check(everyone: Sequence[_Sent], full: Sequence[_Sent]) -> None:
    if not full:
        raise ProblemError("No rank has a sample to look at.")
    for what, values in (
        ("outputs of a sample have shape", [sent.shape for sent in full]),
        ("loss is", [sent.name for sent in full]),
    ):
        if len(set(values)) > 1:
            raise ProblemError(
                f"The ranks do not fit together: the {what} {values[0]} on one rank and "
                f"{next(value for value in values if value != values[0])} on another. Pad all "
                "batches to the same length, or use data='train' or data='val', where all ranks "
                "get parts of one batch."
            )
    factors = [sent.multiplier for sent in full if sent.multiplier is not None]
    if factors and not all(math.isclose(each, factors[0], rel_tol=1e-5) for each in factors):
        raise ProblemError(
            f"The loss enters with the factor {factors[0]} on one rank and another one elsewhere "
            f"({factors}), so the loss of all samples is not known. Use data='train' or "
            "data='val', or an explicit problem."
        )


def _stated_on_all(problem: Problem, expected: Tensor, layout: SampleLayout) -> LossCall:
    """The loss call of the whole batch, by running it once on this rank."""
    with problem.recorded() as recording:
        call = recording.loss
        assert call is not None
        found = layout.split(call.outputs.detach())
        limit = 1e-3 * float(expected.abs().max()) + 1e-6
        if found.shape != expected.shape or bool((found - expected).abs().max() > limit):
            raise ProblemError(
                "The outputs of the whole batch are not those of the ranks' parts, so the batch "
                "cannot be divided among the ranks: samples influence each other, or a tensor of "
                "the batch does not have one row for each sample."
            )
        return replace(call, outputs=call.outputs.detach())
