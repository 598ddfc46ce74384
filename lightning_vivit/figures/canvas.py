"""From a figure to its pixels, so that a process that draws for days does not grow.

Objects of matplotlib refer to each other in circles, so a figure lives on until the garbage
collector meets it, with a megabyte of canvas and many small blocks. Some tens of them lie about at
any time, other code's blocks come to lie between theirs, and the heap never gets smaller again.
Therefore canvases are reused, and a figure is collected as soon as it is drawn.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZES = 8  # canvases that are kept
USES = 50  # drawings on one canvas: matplotlib remembers the texts that it measured for it

_Size = tuple[int, int, float]  # width and height in pixels, dots per inch


class Canvases:
    """Agg's renderers that wait for the next figure of their size. Threads never share one."""

    def __init__(self) -> None:
        self._idle: dict[_Size, tuple[Any, int]] = {}  # the renderer, and how often it has drawn

    @contextmanager
    def borrow(self, size: _Size) -> Iterator[Any]:
        """An empty renderer of this size; one on which drawing failed does not come back."""
        from matplotlib.backends.backend_agg import RendererAgg

        renderer, uses = self._idle.pop(size, (None, 0))
        if renderer is None or uses >= USES:
            renderer = None  # before the next one is made
            renderer, uses = RendererAgg(*size), 0
        else:
            renderer.clear()
        yield renderer
        self._idle[size] = renderer, uses + 1
        for other in list(self._idle)[:-SIZES]:
            self._idle.pop(other, None)


_CANVASES = Canvases()


@cache
def _keep_names() -> tuple[str, ...]:
    """Each axis asks for this file, and pathlib interns the parts of its path.

    Parts that nothing holds leave holes in the interpreter's table of interned strings, which grows
    by megabytes when it is full of them.
    """
    import matplotlib

    return Path(matplotlib.get_data_path(), "fonts/ttf/cmr10.ttf").parts


def to_pixels(figure: Figure) -> np.ndarray:
    """Draw a figure and empty it.

    Args:
        figure: Any figure, whatever its canvas. It is empty afterwards.

    Returns:
        [height, width, 3] of uint8.
    """
    width, height = figure.bbox.size
    with _CANVASES.borrow((int(width), int(height), float(figure.dpi))) as renderer:
        figure.draw(renderer)
        pixels = np.array(np.asarray(renderer.buffer_rgba())[..., :3])
    figure.clear()
    return pixels


def draw_pixels(draw: Callable[[], Figure]) -> np.ndarray:
    """Make a figure, draw it, and leave nothing of it behind.

    Args:
        draw: Makes the figure, with pyplot or without.

    Returns:
        [height, width, 3] of uint8.
    """
    _keep_names()
    with _collecting():
        return _draw_and_close(draw)


def _draw_and_close(draw: Callable[[], Figure]) -> np.ndarray:
    figure = draw()
    try:
        return to_pixels(figure)
    finally:
        pyplot = sys.modules.get("matplotlib.pyplot")
        if pyplot is not None:  # a figure made without pyplot needs no closing
            pyplot.close(figure)


@contextmanager
def _collecting() -> Iterator[None]:
    """What is made inside stays in the youngest generation, and its garbage goes at the end."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
            gc.collect(0)
