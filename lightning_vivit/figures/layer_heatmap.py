"""The largest eigenvalue of each parameter group over the steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lightning_vivit.figures.render import SMALL, add_colour_bar, dress, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 60  # groups
NAME = 20  # letters of a name


def draw_layers(
    names: Sequence[str], steps: Sequence[int], values: np.ndarray, title: str = ""
) -> Figure:
    """A row for each group, a column for each step, colours on a log scale.

    Args:
        names: Of the groups, the first on top; the first 60 are shown.
        steps: The monitored steps.
        values: [groups, steps], NaN or not positive where nothing is known.
        title: Of the figure.

    Returns:
        The figure.
    """
    names, values = list(names)[:SHOWN], np.asarray(values, dtype=np.float64)[:SHOWN]
    labels = [_shortened(name) for name in names]
    margin = 0.3 + 0.075 * max(map(len, labels))
    figure = new_figure(4.8, 1.0 + 0.2 * max(len(names), 8), left=margin)
    axes = figure.add_subplot()
    known = np.where(values > 0, values, np.nan)
    logs = np.ma.masked_invalid(np.log10(known))
    image = axes.imshow(logs, aspect="auto", cmap="viridis", interpolation="nearest")
    shown = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), 6)).round().astype(int))
    dress(axes, title, "step")
    axes.set_xticks(shown, [str(steps[i]) for i in shown])
    axes.set_yticks(range(len(names)), labels, fontsize=SMALL)
    add_colour_bar(figure, image, axes, "log10 eigenvalue")
    return figure


def _shortened(name: str) -> str:
    return name if len(name) <= NAME else f"…{name[-NAME + 1 :]}"
