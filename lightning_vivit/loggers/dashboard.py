"""Charts of TensorBoard's custom scalars page: which keys belong on one chart.

A chart names its keys by regular expressions, since the indices and parameter groups that a run
has are not known before its first monitored step. TensorBoard matches them from the start of a tag.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

CATEGORIES = ("Curvature", "Directions", "Kernel", "Gradients", "Cost")  # in this order on the page
INDEX = "_i"  # ends a name that has one key for each index


@dataclass(frozen=True)
class Panel:
    """A chart as a monitor describes it, whatever its prefix and parameter groups are.

    Attributes:
        category: Section of the page.
        title: Of the chart.
        names: Last parts of the keys. An ending ``_i`` stands for all indices, ``/*`` for all
            keys below.
        section: First part of the keys; None for the monitor's own, with its parameter groups.
    """

    category: str
    title: str
    names: tuple[str, ...]
    section: str | None = None


@dataclass(frozen=True)
class Chart:
    """One chart with regular expressions of its keys, without the start anchor."""

    category: str
    title: str
    patterns: tuple[str, ...]


COST = (
    Panel("Cost", "Seconds of a monitored step", ("seconds",), "cost"),
    Panel("Cost", "Share of the run's time spent in the monitors", ("overhead",), "cost"),
)


def charts(panels: Iterable[Panel], section: str, prefix: str, grouped: bool) -> list[Chart]:
    """The charts of one monitor.

    Args:
        panels: What the monitor describes.
        section: First part of its keys.
        prefix: Put before every key.
        grouped: Whether there are several parameter groups: then a chart shows all groups, and of
            names with an index the first.

    Returns:
        One chart for each panel.
    """
    found = []
    for panel in panels:
        own = panel.section is None
        start = re.escape(f"{prefix}{section}/" if own else f"{panel.section}/")
        several = grouped and own
        middle = "(?:.+/)?" if several else ""
        patterns = tuple(f"{start}{middle}{_pattern(name, several)}$" for name in panel.names)
        named = bool(prefix) and own  # what all monitors share has no prefix
        category = f"{panel.category} ({prefix.strip('/')})" if named else panel.category
        title = f"{panel.title}, by parameter group" if several else panel.title
        found.append(Chart(category, title, patterns))
    return found


def layout(charts: Iterable[Chart], start: str = "") -> dict[str, dict[str, list[str | list[str]]]]:
    """The argument of `SummaryWriter.add_custom_scalars`.

    Args:
        charts: Of all monitors; equal titles in one category become one chart.
        start: What the logger puts before every key.

    Returns:
        Category -> title -> ["Multiline", patterns].
    """
    collected: dict[str, dict[str, list[str]]] = {}
    for chart in sorted(charts, key=lambda chart: _rank(chart.category)):
        patterns = collected.setdefault(chart.category, {}).setdefault(chart.title, [])
        for pattern in chart.patterns:
            whole = f"^{re.escape(start)}{pattern}"
            if whole not in patterns:
                patterns.append(whole)
    return {
        category: {title: ["Multiline", patterns] for title, patterns in titles.items()}
        for category, titles in collected.items()
    }


def _pattern(name: str, several: bool) -> str:
    if name.endswith(INDEX):
        return re.escape(name.removesuffix(INDEX)) + ("_1" if several else r"_\d+")
    if name.endswith("/*"):
        return re.escape(name.removesuffix("*")) + ".+"
    return re.escape(name)


def _rank(category: str) -> tuple[bool, str, int]:
    """Categories without a prefix first, then those of each prefix together."""
    name, _, prefix = category.partition(" (")
    order: Sequence[str] = CATEGORIES
    return bool(prefix), prefix, order.index(name)
