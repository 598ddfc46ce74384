"""Losses: per-sample values, gradients and Hessian roots in the outputs of the model."""

from lightning_vivit.losses.base import SampleLoss
from lightning_vivit.losses.call import LossCall
from lightning_vivit.losses.layout import SampleLayout
from lightning_vivit.losses.registry import SUPPORTED, make_loss

__all__ = ["SUPPORTED", "LossCall", "SampleLayout", "SampleLoss", "make_loss"]
