"""Evaluate a module in eval mode and leave it as it was; names without wrappers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Put every submodule in eval mode; put back the mode of each, and the buffers, afterwards."""
    modes = [(child, child.training) for child in module.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
    try:
        module.eval()
        yield
    finally:
        for child, mode in modes:
            child.training = mode
        with torch.no_grad():
            for buffer, value in buffers:
                if not torch.equal(buffer, value):  # a copy for nothing would spoil live graphs
                    buffer.copy_(value)
