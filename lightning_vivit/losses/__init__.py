"""Losses: per-sample values, gradients and Hessian roots in the outputs of the model."""

from lightning_vivit.losses.call import LossCall
from lightning_vivit.losses.elementwise import ElementwiseLoss
from lightning_vivit.losses.known_losses import (
    SUPPORTED,
    LossRule,
    add_loss_rule,
    make_loss,
    remove_loss_rule,
)
from lightning_vivit.losses.multiple import MultipleLoss
from lightning_vivit.losses.sample_loss import SampleLoss
from lightning_vivit.samples.layout import SampleLayout

__all__ = [
    "SUPPORTED",
    "ElementwiseLoss",
    "LossCall",
    "LossRule",
    "MultipleLoss",
    "SampleLayout",
    "SampleLoss",
    "add_loss_rule",
    "make_loss",
    "remove_loss_rule",
]
