"""The kernel between samples as a heatmap, sorted by class."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lightning_vivit.figures.render import INK, SMALL, add_colour_bar, dress, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_kernel(kernel: Tensor, targets: Tensor | None = None, title: str = "Kernel") -> Figure:
    """Cosines of the samples' features, the kernel K_nm / sqrt(K_nn K_mm), sorted by class.

    Args:
        kernel: [N, N], the trace kernel.
        targets: Class indices [N], class probabilities [N, C] or values [N] to sort by; others
            leave the samples in their order.
        title: Of the figure.

    Returns:
        The figure. A kernel that knows the labels has bright blocks on its diagonal.
    """
    values = kernel.detach().to("cpu", torch.float64)
    norms = values.diagonal().clamp(min=0).sqrt()
    cosines = values / (norms[:, None] * norms[None, :]).clamp(min=torch.finfo(torch.float64).tiny)
    order, classes, sorted_by = _order(targets, values.shape[0])
    shown = cosines[order][:, order].numpy()
    figure = new_figure(4.6, 4.0, left=0.45)
    axes = figure.add_subplot()
    off_diagonal = shown[~np.eye(len(shown), dtype=bool)] if len(shown) > 1 else shown
    signed = bool(off_diagonal.min() < -0.05)
    image = axes.imshow(
        shown,
        cmap="RdBu_r" if signed else "magma",
        vmin=-1.0 if signed else 0.0,
        vmax=1.0,
        interpolation="nearest",
    )
    dress(axes, title, f"sample, {sorted_by}")
    if classes is not None:
        _mark_classes(axes, classes[order].numpy())
    add_colour_bar(figure, image, axes, "cosine of the gradients")
    return figure


def _order(targets: Tensor | None, count: int) -> tuple[Tensor, Tensor | None, str]:
    """Order of the samples, their classes if there are some, and a word for the order."""
    unsorted = torch.arange(count), None, "in the order of the batch"
    if targets is None or targets.is_complex() or targets.shape[:1] != (count,):
        return unsorted
    found = targets.detach().cpu()
    if found.is_floating_point() and found.ndim == 2 and found.shape[1] > 1:
        found = found.argmax(dim=1)
    if found.numel() != count:
        return unsorted
    found = found.reshape(count)
    order = torch.argsort(found, stable=True)
    if found.is_floating_point():
        return order, None, "sorted by target"
    return order, found.to(torch.int64), "sorted by class"


def _mark_classes(axes: object, classes: np.ndarray) -> None:
    """Lines between classes, and a tick with its number in the middle of each."""
    from matplotlib.collections import LineCollection

    names, starts, counts = np.unique(classes, return_index=True, return_counts=True)
    first, last = -0.5, len(classes) - 0.5
    edges = starts[1:] - 0.5
    lines = [[(first, edge), (last, edge)] for edge in edges]
    lines += [[(edge, first), (edge, last)] for edge in edges]
    for colour, width in (("white", 1.2), (INK, 0.4)):  # one object for all lines: drawn faster
        shown = LineCollection(lines, colors=colour, linewidths=width)
        axes.add_collection(shown, autolim=False)  # type: ignore[attr-defined]
    every = -(-len(names) // 20)  # not more names than fit
    middles = (starts + (counts - 1) / 2)[::every]
    for axis in (axes.xaxis, axes.yaxis):  # type: ignore[attr-defined]
        axis.set_ticks(middles, [str(name) for name in names[::every]], fontsize=SMALL)
