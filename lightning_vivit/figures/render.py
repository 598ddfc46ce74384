"""Figures without pyplot: how all of them look."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 130
INK, FAINT = "#222222", "#d9d9d9"
TEXT, SMALL = 9.0, 8.0  # points


def new_figure(width: float = 4.6, height: float = 3.3, left: float = 0.75) -> Figure:
    """A figure with its own canvas; sizes in inches.

    It is small, so that its text can be read on TensorBoard's cards of 350 pixels. The margins are
    fixed, because a layout engine takes as long as the drawing itself.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white", edgecolor="white")
    figure.subplots_adjust(
        left=left / width, right=1 - 0.15 / width, bottom=0.5 / height, top=1 - 0.32 / height
    )
    FigureCanvasAgg(figure)
    return figure


def use_plain_powers(axis: Any) -> None:
    """Plain numbers on a log axis whose limits are set: 10 to a power is typeset, which is slow.

    There are no ticks between the powers, which take most of the time of a drawing. Limits
    that are less than a factor of 100 apart get 2 and 5 times the powers, too.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = axis.get_view_interval()
    between = (1.0, 2.0, 5.0) if high < 100 * low else (1.0,)
    axis.set_major_locator(LogLocator(subs=between, numticks=9))
    axis.set_major_formatter(FuncFormatter(plain))
    axis.set_minor_locator(NullLocator())


def plain(value: float, _: object = None) -> str:
    """A number as short as it can be: 0.01, 100, 1e-05."""
    return f"{value:g}"


def dress(axes: Axes, title: str = "", x: str = "", y: str = "") -> None:
    """Title, labels and colours, whatever the user's own style is."""
    axes.set_facecolor("white")
    axes.set_title(title, fontsize=TEXT + 1, color=INK, loc="left")
    axes.set_xlabel(x, fontsize=TEXT, color=INK)
    axes.set_ylabel(y, fontsize=TEXT, color=INK)
    axes.tick_params(labelsize=SMALL, colors=INK, labelcolor=INK, which="both")
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(INK)


def add_colour_bar(figure: Figure, shown: Any, axes: Axes, label: str) -> Any:
    """A colour bar in the figure's style."""
    bar = figure.colorbar(shown, ax=axes, pad=0.02, aspect=30)
    bar.ax.minorticks_off()
    bar.set_label(label, fontsize=TEXT, color=INK)
    bar.ax.tick_params(labelsize=SMALL, colors=INK, labelcolor=INK, which="both")
    bar.outline.set_visible(False)
    return bar
