"""The cotangents that are backpropagated: unit columns, or Monte-Carlo columns and a gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_vivit.samples.layout import SampleLayout


def unit_columns(outputs: Tensor, layout: SampleLayout) -> Tensor:
    """One column for each output of a sample, the same for all samples.

    Args:
        outputs: The outputs.
        layout: Samples and positions of the outputs.

    Returns:
        [D, *outputs shape]: column d is 1 at output d of every sample.
    """
    depth = outputs.numel() // layout.num_samples
    return shared_columns(
        outputs, layout, torch.eye(depth, dtype=outputs.dtype, device=outputs.device)
    )


def shared_columns(outputs: Tensor, layout: SampleLayout, columns: Tensor) -> Tensor:
    """The same columns for all samples.

    Args:
        outputs: The outputs.
        layout: Samples and positions of the outputs.
        columns: [D, D'].

    Returns:
        [D', *outputs shape].
    """
    n = layout.num_samples
    return torch.stack(
        [layout.unflatten(column.expand(n, -1), outputs.shape) for column in columns.T]
    )


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
