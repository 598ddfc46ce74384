"""The factor with which each microbatch's loss enters that of the whole batch.

A training step that sees a microbatch normalises by the microbatch. The whole loss is
sum_b share_b loss_b; the shares follow from what each loss divides by, and where a step divides
itself (``loss.sum() / len(batch)``) from how its factor changes with the size of the microbatch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_vivit.errors import ProblemError
from lightning_vivit.losses import LossCall, SampleLoss


@dataclass(frozen=True)
class LossSize:
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
    def of(cls, call: LossCall, loss: SampleLoss, samples: int) -> LossSize:
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


def shares(sizes: Sequence[LossSize], other: LossSize | None) -> list[float]:
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
