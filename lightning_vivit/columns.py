"""The cotangents that are backpropagated: unit columns, or Monte-Carlo columns and a gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_vivit.losses import SampleLayout


def unit_columns(outputs: Tensor, layout: SampleLayout) -> Tensor:
    """One column for each output of a sample, the same for all samples.

    Args:
        outputs: The outputs.
        layout: Samples and positions of the outputs.

    Returns:
        [D, *outputs shape]: column d is 1 at output d of every sample.
    """
    n, d = layout.flatten(outputs.detach()).shape
    eye = torch.eye(d, dtype=outputs.dtype, device=outputs.device)
    return torch.stack([layout.unflatten(row.expand(n, d), outputs.shape) for row in eye])


def sampled_columns(
    outputs: Tensor, layout: SampleLayout, root: Tensor, gradient: Tensor
) -> Tensor:
    """Columns of a root of the loss Hessian, and the loss's gradient as one more.

    Args:
        outputs: The outputs.
        layout: Samples and positions of the outputs.
        root: S, [N, D, M].
        gradient: r, [N, D].

    Returns:
        [M+1, *outputs shape].
    """
    columns = [*root.unbind(2), gradient]
    return torch.stack([layout.unflatten(c, outputs.shape) for c in columns]).to(outputs.dtype)
