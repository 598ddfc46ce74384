"""The microbatches of a problem, and the factor with which each enters the whole batch's loss.

A training step that sees a microbatch normalises by the microbatch. The whole loss is
sum_b share_b loss_b; the shares follow from what each loss divides by, and where a step divides
itself (``loss.sum() / len(batch)``) from how its factor changes with the size of the microbatch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_vivit.errors import InteractionError, OptionError, ProblemError
from lightning_vivit.jacobian.proof import refuse_mixing
from lightning_vivit.jacobian.trust import Proofs, signature
from lightning_vivit.losses import LossCall, SampleLoss
from lightning_vivit.problem.problem import Problem, Recording
from lightning_vivit.samples.batch import batch_size
from lightning_vivit.samples.layout import SampleLayout

_LAYOUTS: Proofs[SampleLayout] = Proofs()
_NO_LOSS = "The problem has no loss, so it has no curvature. Give a loss."


@dataclass(frozen=True)
class Size:
    """What a loss call of one microbatch can be divided by.

    Attributes:
        samples: Number of samples.
        normalizer: What reduction "mean" divides by.
        reduction: Reduction of the loss call.
        factor: Derivative of the loss with respect to the call's result (to its entries, for
            reduction "none", if all that count are equal).
        entries: Entries of the unreduced result that count.
        terms: Entries of the unreduced result.
        averages: Whether the whole loss is a mean over samples by convention, scale = 1/N.
    """

    samples: int
    normalizer: float
    reduction: str
    factor: float
    entries: float
    terms: float
    averages: bool

    @classmethod
    def of(cls, call: LossCall, loss: SampleLoss, samples: int) -> Size:
        """Read the sizes off a loss call.

        Raises:
            ProblemError: Entries of an unreduced loss enter with different factors.
        """
        reduction = call.options.get("reduction", "mean")
        multiplier = call.multiplier
        several = isinstance(multiplier, Tensor) and multiplier.ndim > 0 and reduction == "none"
        averages = reduction == "mean" or several
        if not isinstance(multiplier, Tensor) or multiplier.numel() == 1:
            factor = float(multiplier)
            return cls(samples, loss.normalizer, reduction, factor, 1.0, 1.0, averages)
        counted = multiplier[multiplier != 0]
        if counted.numel() == 0 or not torch.allclose(counted, counted.flatten()[0]):
            raise ProblemError(
                "The entries of the unreduced loss enter the loss with different factors, so the "
                "factors of a microbatch do not tell those of the whole batch. Use microbatch=None."
            )
        entries, terms = float(counted.numel()), float(multiplier.numel())
        factor = float(counted.flatten()[0])
        return cls(samples, loss.normalizer, reduction, factor, entries, terms, averages)

    @property
    def plain(self) -> bool:
        """Whether the loss is the result of the call itself, whatever the size."""
        return self.factor == 1.0 and self.samples > 1

    def divisors(self) -> dict[str, float]:
        """Sizes that a step may have divided by."""
        found = {"nothing": 1.0, "samples": float(self.samples)}
        if self.reduction == "mean":
            return {"nothing": self.normalizer}
        return found | {"weights": self.normalizer, "entries": self.entries, "terms": self.terms}


def shares(sizes: Sequence[Size], other: Size | None) -> list[float]:
    """Factors with which the microbatches' losses add up to the whole batch's.

    Args:
        sizes: The microbatches.
        other: One more microbatch of another number of samples; None if all are plain.

    Returns:
        One factor for each microbatch.

    Raises:
        ProblemError: The factor of the loss call follows no known size.
    """
    seen = [*sizes, *([] if other is None else [other])]
    for divisor in sizes[0].divisors():
        amounts = [size.divisors()[divisor] for size in seen]
        mean = sizes[0].reduction == "mean"  # the call itself divides by the amount
        products = [
            size.factor * (1.0 if mean else amount)
            for size, amount in zip(seen, amounts, strict=True)
        ]
        if max(products) - min(products) <= 1e-5 * max(products):
            own = amounts[: len(sizes)]
            if divisor == "nothing" and not mean:
                return [1.0] * len(sizes)
            return [amount / sum(own) for amount in own]
    raise ProblemError(
        "The loss of a microbatch is scaled by a factor that is neither constant nor one over its "
        "number of samples, entries or weights, so the scale for the whole batch is not known. "
        "Use microbatch=None."
    )


def split_samples(count: int, microbatch: int | None) -> list[tuple[int, int]]:
    """First sample, and one after the last, of each microbatch.

    Raises:
        OptionError: The microbatch is not a positive integer.
    """
    if microbatch is None:
        return [(0, count)]
    if isinstance(microbatch, bool) or not isinstance(microbatch, int) or microbatch < 1:
        raise OptionError(f"microbatch has to be an integer >= 1 or None, got {microbatch!r}.")
    return [(start, min(count, start + microbatch)) for start in range(0, count, microbatch)]


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
    last = batch_size(problem.inputs) - 1
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


def require_loss(recording: Recording) -> tuple[LossCall, Tensor]:
    """The loss call and the live loss of a recording.

    Raises:
        OptionError: There is none.
    """
    if recording.loss is None or recording.total is None:
        raise OptionError(_NO_LOSS)
    return recording.loss, recording.total
