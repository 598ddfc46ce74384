"""Which losses have a rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch.nn.functional as F

from lightning_vivit.errors import ProblemError
from lightning_vivit.losses.bce import BinaryCrossEntropy
from lightning_vivit.losses.call import LossCall
from lightning_vivit.losses.cross_entropy import CrossEntropy
from lightning_vivit.losses.custom import CustomLoss
from lightning_vivit.losses.mse import SquaredError
from lightning_vivit.losses.sample_loss import SampleLoss
from lightning_vivit.samples.layout import SampleLayout

LossRule: TypeAlias = "Callable[[LossCall, SampleLayout], SampleLoss]"

# One line for each function of torch that has a rule.
_BUILT_IN: dict[Callable[..., Any], LossRule] = {
    F.cross_entropy: CrossEntropy,
    F.nll_loss: CrossEntropy,
    F.mse_loss: SquaredError,
    F.binary_cross_entropy_with_logits: BinaryCrossEntropy,
}
_RULES: dict[str, LossRule] = {
    **{function.__name__: rule for function, rule in _BUILT_IN.items()},
    "custom": CustomLoss,
}
SUPPORTED: tuple[str, ...] = tuple(_RULES)

# What the recorder looks for, with the name in `LossCall`.
LOSS_FUNCTIONS: dict[Callable[..., Any], str] = {f: f.__name__ for f in _BUILT_IN}
OTHER_LOSSES: dict[Callable[..., Any], str] = {
    getattr(F, name): name
    for name in (
        "l1_loss",
        "smooth_l1_loss",
        "huber_loss",
        "binary_cross_entropy",
        "kl_div",
        "poisson_nll_loss",
        "gaussian_nll_loss",
        "hinge_embedding_loss",
        "soft_margin_loss",
        "multi_margin_loss",
        "multilabel_margin_loss",
        "multilabel_soft_margin_loss",
        "cosine_embedding_loss",
        "margin_ranking_loss",
        "triplet_margin_loss",
        "ctc_loss",
    )
}


def add_loss_rule(name: str, rule: LossRule) -> None:
    """Give a loss a rule.

    Args:
        name: What `LossCall.name` says.
        rule: Makes the per-sample quantities of a call.

    Raises:
        ValueError: A loss of this name has a rule already.
    """
    if name in _RULES:
        raise ValueError(f"The loss {name!r} already has a rule; one loss has one rule.")
    _RULES[name] = rule


def remove_loss_rule(name: str) -> None:
    """Forget a rule of `add_loss_rule`."""
    if name not in SUPPORTED:
        _RULES.pop(name, None)


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
