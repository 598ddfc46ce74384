"""Figures of named statistics: one panel each, since their sizes have nothing in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

_PANEL_SIZE = (4.0, 3.2)  # inches
_COLUMNS = 3


def plot_panels(
    draw: Callable[..., tuple[Any, Any]],
    value: Mapping[str, Tensor] | Sequence[Mapping[str, Tensor]] | Tensor | Sequence[Tensor],
    ax: Any = None,
) -> tuple[Any, Any]:
    """Draw a dictionary of statistics, or a list of such dictionaries. Needs matplotlib.

    Args:
        draw: Draws one tensor or a list of tensors, called as draw(value, axes).
        value: What to draw.
        ax: Axes to draw everything into; a figure with panels is made without them.

    Returns:
        The figure, None if `ax` is given, and the axes: an array with one for each panel if there
        are several panels.
    """
    first = value if isinstance(value, (Tensor, Mapping)) else value[0]
    if ax is not None or not isinstance(first, Mapping):
        return draw(value, ax)
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    names = list(first)
    columns = min(len(names), _COLUMNS)
    rows = -(-len(names) // columns)
    size = (_PANEL_SIZE[0] * columns, _PANEL_SIZE[1] * rows)
    figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for name, panel in zip(names, grid.flat, strict=False):
        if isinstance(value, Mapping):
            series: Tensor | list[Tensor] = value[name]
            over = "index"
        else:
            series = [step[name] for step in value]  # type: ignore[index]
            over = "step"
        draw(series, panel)
        panel.set_title(name)
        panel.set_ylabel("")
        is_vector = isinstance(series, Tensor) and series.numel() > 1
        if is_vector or isinstance(series, list):
            panel.get_xaxis().set_visible(True)
            panel.set_xlabel(over)
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend = panel.get_legend()
        if legend is not None:
            if is_vector:
                legend.remove()
            else:
                panel.legend(title="index", fontsize="x-small")
    for panel in grid.flat[len(names) :]:
        panel.set_visible(False)
    panels = grid.flatten()[: len(names)]
    return figure, panels if len(names) > 1 else panels[0]
