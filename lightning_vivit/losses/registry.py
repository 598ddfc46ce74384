"""Which losses have a rule."""

from __future__ import annotations

from collections.abc import Callable

from lightning_vivit.errors import ProblemError
from lightning_vivit.losses.base import SampleLoss
from lightning_vivit.losses.bce import BinaryCrossEntropy
from lightning_vivit.losses.call import LossCall
from lightning_vivit.losses.cross_entropy import CrossEntropy
from lightning_vivit.losses.custom import CustomLoss
from lightning_vivit.losses.layout import SampleLayout
from lightning_vivit.losses.mse import SquaredError

_RULES: dict[str, Callable[[LossCall, SampleLayout], SampleLoss]] = {
    "cross_entropy": CrossEntropy,
    "nll_loss": CrossEntropy,
    "mse_loss": SquaredError,
    "binary_cross_entropy_with_logits": BinaryCrossEntropy,
    "custom": CustomLoss,
}

SUPPORTED: tuple[str, ...] = tuple(_RULES)


def make_loss(call: LossCall, layout: SampleLayout) -> SampleLoss:
    """Prepare the per-sample quantities of a loss.

    Args:
        call: What the loss was called with.
        layout: Which rows of the outputs belong to which sample.

    Returns:
        Values, gradients and Hessian roots per sample.

    Raises:
        ProblemError: If the loss, its options or its arguments are not supported.
    """
    if call.name not in _RULES:
        raise ProblemError(
            f"The loss {call.name!r} is not known. Supported are {', '.join(SUPPORTED)}. For "
            "another loss that is convex in the outputs, pass an explicit Problem with a custom "
            "loss function of outputs and targets."
        )
    return _RULES[call.name](call, layout)
