"""Tensors in float64, wherever that is possible."""

from __future__ import annotations

import torch
from torch import Tensor


def double(tensor: Tensor) -> Tensor:
    """The tensor in float64, on its own device where that device has float64, else on the CPU."""
    if tensor.device.type == "mps":
        tensor = tensor.cpu()
    return tensor.to(torch.float64)


def all_finite(tensor: Tensor) -> bool:
    """Whether no entry is infinite or NaN.

    One such entry makes the sum so, and a sum takes a tenth of a mask's time; a sum of finite
    entries may overflow, so the mask decides.

    Args:
        tensor: Any shape, real.
    """
    if bool(torch.isfinite(tensor.detach().sum())):
        return True
    return bool(torch.isfinite(tensor).all())
