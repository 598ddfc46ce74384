"""Charts as positions on a canvas, which the template draws as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from lightning_vivit.report.runs import Histogram
from lightning_vivit.report.scale import Scale

WIDTH, HEIGHT = 520, 260
LEFT, RIGHT, TOP, BOTTOM = 62, WIDTH - 12, 12, HEIGHT - 40  # of what the axes enclose
CANVAS = ("WIDTH", "HEIGHT", "LEFT", "RIGHT", "TOP", "BOTTOM")  # what the template needs
COLOURS = 10
MAX_POINTS = 1000  # of one line; of more, each interval's lowest and highest
MAX_MARKS = 600  # of one chart

Point = tuple[int, float]


@dataclass(frozen=True)
class Line:
    """One line of a chart: what it is called, its colour's number, and points."""

    label: str
    colour: int
    second_run: bool
    points: list[Point]

    @property
    def style(self) -> str:
        """Classes of the style sheet."""
        return f"c{self.colour % COLOURS}" + (" second" if self.second_run else "")


@dataclass(frozen=True)
class Mark:
    """A dot, or a bar down to the axis: where it is, what it looks like and what it says."""

    style: str
    x: float
    y: float
    says: str
    width: float = 0.0


@dataclass
class Drawing:
    """What the template draws.

    Attributes:
        title: For screen readers.
        x: Scale of the horizontal axis.
        y: Scale of the vertical axis.
        below: What the horizontal axis shows.
        limit: Position of a horizontal line.
        curves: Classes and positions of the lines' pieces.
        dots: On the lines.
        bars: Of histograms.
        note: Said in place of data.
    """

    title: str
    x: Scale
    y: Scale
    below: str
    limit: float | None = None
    curves: list[tuple[str, list[tuple[float, float]]]] = field(default_factory=list)
    dots: list[Mark] = field(default_factory=list)
    bars: list[Mark] = field(default_factory=list)
    note: str = ""


def line_chart(lines: Sequence[Line], title: str, limit: float | None = None) -> Drawing:
    """Lines over the steps. Values that are not finite leave gaps.

    Args:
        lines: At least one.
        title: For screen readers.
        limit: A value to draw a horizontal line at.
    """
    thin = [(line, thinned(line.points)) for line in lines]
    finite = [point for _, points in thin for point in points if math.isfinite(point[1])]
    values = [value for _, value in finite] + ([] if limit is None or not finite else [limit])
    x = Scale.around([float(step) for step, _ in finite], LEFT, RIGHT, may_be_log=False)
    y = Scale.around(values, BOTTOM, TOP)
    drawing = Drawing(title, x, y, "step", note="" if finite else "no finite value")
    if limit is not None and finite:
        drawing.limit = y.at(limit)
    marked = sum(len(points) for _, points in thin) <= MAX_MARKS
    for line, points in thin:
        for piece in _pieces(points):
            spots = [(x.at(step), y.at(value)) for step, value in piece]
            if len(spots) > 1:
                drawing.curves.append((line.style, spots))
            if marked or len(spots) == 1:
                says = [f"{line.label}, step {n}: {v:.6g}".removeprefix(", ") for n, v in piece]
                drawing.dots += [
                    Mark(line.style, *spot, said) for spot, said in zip(spots, says, strict=True)
                ]
    return drawing


def histogram_chart(histograms: Sequence[tuple[int, Histogram]], title: str) -> Drawing:
    """Histograms of one or two runs on the same axes, as densities: their bins differ.

    Args:
        histograms: Number of the run, and its histogram.
        title: For screen readers.
    """
    edges = [edge for _, each in histograms for edge in each.edges]
    heights = [_densities(each) for _, each in histograms]
    tallest = max((height for each in heights for height in each), default=0.0)
    x = Scale.around(edges, LEFT, RIGHT, may_be_log=False)
    y = Scale(0.0, 1.05 * tallest or 1.0, BOTTOM, TOP)
    drawing = Drawing(title, x, y, "value")
    for (run, each), tops in zip(histograms, heights, strict=True):
        for (left, right), height in zip(pairwise(each.edges), tops, strict=False):
            if height > 0:
                says = f"{left:.4g} to {right:.4g}: density {height:.3g}"
                width = max(x.at(right) - x.at(left), 0.5)
                drawing.bars.append(Mark(f"c{run}", x.at(left), y.at(height), says, width))
    return drawing


def thinned(points: list[Point]) -> list[Point]:
    """At most about `MAX_POINTS` points, among them each interval's lowest and highest."""
    if len(points) <= MAX_POINTS:
        return points
    size = -(-len(points) // (MAX_POINTS // 2))
    kept: list[Point] = []
    for first in range(0, len(points), size):
        part = points[first : first + size]
        numbers = [point for point in part if math.isfinite(point[1])] or part[:1]
        ends = {min(numbers, key=lambda p: p[1]), max(numbers, key=lambda p: p[1])}
        kept.extend(sorted(ends))
    return kept


def _pieces(points: list[Point]) -> list[list[Point]]:
    pieces: list[list[Point]] = [[]]
    for point in points:
        if math.isfinite(point[1]):
            pieces[-1].append(point)
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]


def _densities(histogram: Histogram) -> list[float]:
    total = sum(histogram.counts) or 1.0
    edges = histogram.edges
    widths = [right - left for left, right in pairwise(edges)]
    counted = zip(histogram.counts, widths, strict=False)
    return [count / (total * width) if width > 0 else 0.0 for count, width in counted]
