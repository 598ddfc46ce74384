"""The spectrum as a curve, one for each monitored step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from lightning_vivit.figures.render import (
    FAINT,
    add_colour_bar,
    dress,
    new_figure,
    use_plain_powers,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DECADES = 7  # below the largest eigenvalue; what is smaller is rounding


def draw_spectra(entries: Sequence[tuple[int, Tensor]], title: str = "Eigenvalues") -> Figure:
    """Eigenvalue against index, both on log axes; earlier steps are lighter.

    Args:
        entries: (step, eigenvalues [K] in any order) in the order of the steps.
        title: Of the figure.

    Returns:
        The figure. A leading group that stands out shows as a cliff, a power law as a line.
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    figure = new_figure()
    axes = figure.add_subplot()
    steps = [step for step, _ in entries]
    first, latest = (steps[0], steps[-1]) if len(steps) > 1 else (steps[0] - 1, steps[0])
    scale = Normalize(first, latest)  # a single curve is dark
    colours = ListedColormap(colormaps["YlGnBu"](np.linspace(0.3, 1.0, 256)))
    highest, length = 0.0, 1
    for step, values in entries:
        curve = np.sort(values.numpy())[::-1]
        curve = curve[curve > 0]
        if curve.size == 0:
            continue
        highest, length = max(highest, float(curve[0])), max(length, curve.size)
        last = step == latest
        axes.plot(
            np.arange(1, curve.size + 1),
            curve,
            color=colours(scale(step)),
            linewidth=2.0 if last else 1.0,
            marker="o",
            markersize=3.5 if last else 2.0,
            markevery=slice(0, 10),
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(0.9, max(2, length) * 1.1)
    if highest > 0:
        axes.set_ylim(highest * 10.0**-DECADES, highest * 3)
    use_plain_powers(axes.xaxis)
    use_plain_powers(axes.yaxis)
    axes.grid(True, color=FAINT, linewidth=0.5)
    axes.set_axisbelow(True)
    dress(axes, f"{title} at step {latest}", "index", "eigenvalue")
    if len(entries) > 1:
        add_colour_bar(figure, ScalarMappable(scale, colours), axes, "step")
    return figure
