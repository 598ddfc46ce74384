"""Slopes and curvatures of every sample along the leading directions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from lightning_vivit.figures.render import (
    FAINT,
    INK,
    SMALL,
    dress,
    new_figure,
    plain,
    use_plain_powers,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN = 10  # directions
POINTS = 256  # samples of one direction
BLUE, ORANGE = "#2b6ca3", "#c8501e"
_GOLDEN = 0.6180339887498949  # multiples of it fill an interval evenly


def draw_directions(gammas: Tensor, lambdas: Tensor, title: str = "") -> Figure:
    """One point for each sample, with the mean and twice its standard error.

    Args:
        gammas: [N, K] slopes along directions that point uphill, the leading one first.
        lambdas: [N', K] curvatures along them.
        title: Of the figure.

    Returns:
        The figure: above the slopes, on an axis that is linear about zero and logarithmic beyond;
        below the curvatures on a log axis. A bar that reaches zero
        says that the sign of the mean slope is not known from these samples.
    """
    figure = new_figure(4.6, 4.2)
    above, below = figure.subplots(2, 1, sharex=True)
    _strips(above, gammas, BLUE)
    above.axhline(0.0, color=INK, linewidth=0.8)
    dress(above, title, "", "slope gamma")
    _strips(below, lambdas, ORANGE, log=True)
    dress(below, "", "direction (1: largest eigenvalue)", "curvature lambda")
    return figure


def _strips(axes: Axes, values: Tensor, colour: str, log: bool = False) -> None:
    columns = values.detach().double().cpu().numpy()[:, :SHOWN]
    samples, count = columns.shape
    means = columns.mean(axis=0)
    errors = 2 * columns.std(axis=0, ddof=1) / samples**0.5 if samples > 1 else np.zeros(count)
    centres = np.arange(1, count + 1)
    some = columns[:POINTS]  # [n, k]
    spread = (np.arange(some.shape[0]) * _GOLDEN % 1.0 - 0.5) * 0.6
    places = centres + spread[:, None]
    axes.plot(places.ravel(), some.ravel(), ".", color=colour, alpha=0.5, markersize=3)
    axes.errorbar(
        centres,
        means,
        yerr=errors,
        fmt="_",
        color=INK,
        markersize=16,
        markeredgewidth=2.0,
        elinewidth=4.0,
        alpha=0.75,
        label="mean ± 2 std. errors",
    )
    positive = columns[columns > 0]
    if not log:
        _set_signed_scale(axes, columns)
    elif positive.size:
        axes.set_yscale("log")
        axes.set_ylim(max(positive.min(), positive.max() * 1e-6) / 2, positive.max() * 2)
        use_plain_powers(axes.yaxis)
    axes.set_xlim(0.4, count + 0.6)
    axes.set_xticks(centres, [str(k) for k in centres])
    axes.grid(True, axis="y", color=FAINT, linewidth=0.5)
    axes.set_axisbelow(True)
    if not log:
        axes.legend(
            fontsize=SMALL, frameon=False, loc="lower right", bbox_to_anchor=(1, 1), borderpad=0
        )


def _set_signed_scale(axes: Axes, columns: np.ndarray) -> None:
    """Linear about zero, where half of the samples are; logarithmic beyond, for outliers."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    sizes = np.abs(columns)
    largest, middle = float(sizes.max()), float(np.median(sizes))
    if largest == 0 or middle == 0:
        return
    power = math.floor(math.log10(middle))
    threshold = 10.0**power
    last = max(power, math.floor(math.log10(largest)))
    room = max(0.6, 0.4 * (last - power))  # for the labels about zero
    axes.set_yscale("symlog", linthresh=threshold, linscale=room)
    powers = range(power, last + 1, -(-(last - power + 1) // 4))
    ticks = [sign * 10.0**p for p in powers for sign in (-1, 1)]
    axes.yaxis.set_major_locator(FixedLocator([*ticks, 0.0]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(plain))
    bound = largest * 1.4
    axes.set_ylim(-bound if columns.min() < 0 else -threshold, bound)
