"""A section of keys: the statistics that have the first part of their keys in common."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from lightning_vivit.statistics.findings import Findings
from lightning_vivit.statistics.key import Statistic


@dataclass(frozen=True)
class Section:
    """A part of the table of keys.

    Attributes:
        name: First part of the keys.
        monitor: Class name of the monitor that logs them; empty for all monitors.
        statistics: In the order in which they are logged.
        words: What texts of the keys say in place of ``{word}``.
    """

    name: str
    monitor: str
    statistics: tuple[Statistic, ...]
    words: Mapping[str, str] = field(default_factory=dict)


def statistics_of(*modules: ModuleType) -> tuple[Statistic, ...]:
    """The statistics that some modules declare, in the order in which they stand there."""
    return tuple(
        each
        for module in modules
        for each in vars(module).values()
        if isinstance(each, Statistic) and each.compute.__module__ == module.__name__
    )


def measure(statistics: Iterable[Statistic], look: Any) -> Findings:
    """Walk over the statistics of one parameter group.

    Args:
        statistics: Of any kind; an overview, which is one of all groups, is passed over.
        look: What they are functions of.

    Returns:
        What they found, by the last part of the keys.
    """
    found = Findings()
    places: dict[str, dict[str, Any]] = {
        "scalar": found.scalars,
        "histogram": found.histograms,
        "figure": found.figures,
        "array": found.arrays,
    }
    for statistic in statistics:
        if statistic.kind == "overview":
            continue
        named = statistic.expand(statistic.compute(look))
        places[statistic.kind].update(named)
        if statistic.verdict is not None:
            found.limits.update(dict.fromkeys(named, statistic.verdict.limit))
    return found
