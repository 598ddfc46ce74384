"""Tensors in float64, wherever that is possible."""

from __future__ import annotations

import torch
from torch import Tensor


def double(tensor: Tensor) -> Tensor:
    """The tensor in float64, on its own device where that device has float64, else on the CPU."""
    if tensor.device.type == "mps":
        tensor = tensor.cpu()
    return tensor.to(torch.float64)
