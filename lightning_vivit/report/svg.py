"""Charts as inline SVG. Colours come from the page's style, for light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from lightning_vivit.report.axes import Axis, label
from lightning_vivit.report.runs import Histogram

WIDTH, HEIGHT = 520, 260
LEFT, RIGHT, TOP, BOTTOM = 62, 12, 12, 40
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


def line_chart(lines: Sequence[Line], title: str, limit: float | None = None) -> str:
    """Lines over the steps. Values that are not finite leave gaps.

    Args:
        lines: At least one.
        title: For screen readers.
        limit: A value to draw a horizontal line at.
    """
    thin = [(line, thinned(line.points)) for line in lines]
    finite = [point for _, points in thin for point in points if math.isfinite(point[1])]
    values = [value for _, value in finite] + ([] if limit is None or not finite else [limit])
    x = Axis.around([float(step) for step, _ in finite], LEFT, WIDTH - RIGHT, may_be_log=False)
    y = Axis.around(values, HEIGHT - BOTTOM, TOP)
    parts = [_frame(x, y, "step")]
    if limit is not None and finite:
        parts.append(_segment("limit", LEFT, WIDTH - RIGHT, y.at(limit), y.at(limit)))
    marked = sum(len(points) for _, points in thin) <= MAX_MARKS
    for line, points in thin:
        style = f"line c{line.colour % COLOURS}" + (" second" if line.second_run else "")
        for piece in _pieces(points):
            spots = [(x.at(step), y.at(value)) for step, value in piece]
            if len(spots) > 1:
                path = " ".join(f"{a:.1f},{b:.1f}" for a, b in spots)
                parts.append(f'<polyline class="{style}" points="{path}"/>')
            if marked or len(spots) == 1:
                for (a, b), (step, value) in zip(spots, piece, strict=True):
                    said = escape(f"{line.label}, step {step}: {value:.6g}".removeprefix(", "))
                    parts.append(
                        f'<circle class="dot c{line.colour % COLOURS}" cx="{a:.1f}" cy="{b:.1f}" '
                        f'r="2"><title>{said}</title></circle>'
                    )
    if not finite:
        parts.append(_text(WIDTH / 2, HEIGHT / 2, "middle", "no finite value"))
    return _svg(title, parts)


def histogram_chart(histograms: Sequence[tuple[int, Histogram]], title: str) -> str:
    """Histograms of one or two runs on the same axes, as densities: their bins differ.

    Args:
        histograms: Number of the run, and its histogram.
        title: For screen readers.
    """
    edges = [edge for _, each in histograms for edge in each.edges]
    heights = [_densities(each) for _, each in histograms]
    tallest = max((height for each in heights for height in each), default=0.0)
    x = Axis.around(edges, LEFT, WIDTH - RIGHT, may_be_log=False)
    y = Axis(0.0, 1.05 * tallest or 1.0, HEIGHT - BOTTOM, TOP)
    parts = [_frame(x, y, "value")]
    for (run, each), tops in zip(histograms, heights, strict=True):
        for (left, right), height in zip(pairwise(each.edges), tops, strict=False):
            if height > 0:
                a, b, top = x.at(left), x.at(right), y.at(height)
                parts.append(
                    f'<rect class="bar c{run}" x="{a:.1f}" y="{top:.1f}" '
                    f'width="{max(b - a, 0.5):.1f}" height="{HEIGHT - BOTTOM - top:.1f}">'
                    f"<title>{left:.4g} to {right:.4g}: density {height:.3g}</title></rect>"
                )
    return _svg(title, parts)


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


def _frame(x: Axis, y: Axis, below: str) -> str:
    base, end = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = []
    for tick in y.ticks():
        at = y.at(tick)
        parts.append(_segment("grid", LEFT, end, at, at))
        parts.append(_text(LEFT - 6, at + 4, "end", label(tick)))
    for tick in x.ticks():
        at = x.at(tick)
        parts.append(_segment("axis", at, at, base, base + 4))
        parts.append(_text(at, base + 17, "middle", label(tick)))
    parts.append(_segment("axis", LEFT, end, base, base))
    parts.append(_text((LEFT + end) / 2, HEIGHT - 6, "middle", below))
    return "".join(parts)


def _segment(style: str, x1: float, x2: float, y1: float, y2: float) -> str:
    return f'<line class="{style}" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, anchor: str, text: str) -> str:
    return f'<text class="tick" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'


def _svg(title: str, parts: list[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg>"
    )
