"""Charts of TensorBoard's custom scalars page: which keys belong on one chart.

A chart names its keys by regular expressions, since the indices and parameter groups that a run
has are not known before its first monitored step. TensorBoard matches them from the start of a tag.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from lightning_vivit.statistics import Section, Statistic
from lightning_vivit.statistics.key import CATEGORIES


@dataclass(frozen=True)
class Chart:
    """One chart with regular expressions of its keys, without the start anchor."""

    category: str
    title: str
    patterns: tuple[str, ...]


def charts(
    section: Section, statistics: Iterable[Statistic], prefix: str = "", grouped: bool = False
) -> list[Chart]:
    """The charts of one monitor, those first that people should look at first.

    Args:
        section: Of its keys.
        statistics: Those of the section that it logs.
        prefix: Put before every key.
        grouped: Whether there are several parameter groups: then a chart shows all groups, and of
            names with an index the first.

    Returns:
        One chart for each title of the scalars.
    """
    start = re.escape(f"{prefix}{section.name}/") + ("(?:.+/)?" if grouped else "")
    patterns: dict[tuple[str, str], list[str]] = {}
    scalars = [statistic for statistic in statistics if statistic.kind == "scalar"]
    for statistic in sorted(scalars, key=Statistic.rank):
        category = f"{statistic.category} ({prefix.strip('/')})" if prefix else statistic.category
        title = statistic.title(section.words) + (", by parameter group" if grouped else "")
        pattern = f"{start}{statistic.pattern(first_only=grouped)}$"
        patterns.setdefault((category, title), []).append(pattern)
    return [Chart(*names, tuple(found)) for names, found in patterns.items()]


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


def _rank(category: str) -> tuple[bool, str, int]:
    """Categories without a prefix first, then those of each prefix together."""
    name, _, prefix = category.partition(" (")
    return bool(prefix), prefix, CATEGORIES.index(name)
