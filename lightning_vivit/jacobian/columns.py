"""The cotangents that are backpropagated: the same for all samples, or each sample's own."""

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


def own_columns(outputs: Tensor, layout: SampleLayout, columns: Tensor) -> Tensor:
    """Columns that are others for each sample, such as a root of the loss's Hessian.

    Args:
        outputs: The outputs.
        layout: Samples and positions of the outputs.
        columns: [N, D, M].

    Returns:
        [M, *outputs shape].
    """
    unflattened = [layout.unflatten(column, outputs.shape) for column in columns.unbind(2)]
    return torch.stack(unflattened).to(outputs.dtype)
