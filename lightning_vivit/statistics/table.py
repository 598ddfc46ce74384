"""The table of all keys, which dashboards, reports, docs/keys.md and tests read."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

from lightning_vivit.matrices import MATRICES, Matrix
from lightning_vivit.statistics import cost
from lightning_vivit.statistics.curvature import CURVATURE
from lightning_vivit.statistics.directions import DIRECTIONS
from lightning_vivit.statistics.key import Kind, Statistic
from lightning_vivit.statistics.ntk import NTK
from lightning_vivit.statistics.section import Section, statistics_of


def section_of(name: str, monitor: str, statistics: Iterable[Statistic], matrix: Matrix) -> Section:
    """The keys of a matrix: those statistics for which it has what they need, as it reads them."""
    words = {
        "section": name,
        "matrix": matrix.title,
        "mark": matrix.mark,
        "source": matrix.source,
        "range": "≥ 0" if matrix.semidefinite else "any",
    }
    had = (each for each in statistics if all(getattr(matrix, need) for need in each.needs))
    read = (replace(each, reading=matrix.readings.get(each.name, each.reading)) for each in had)
    return Section(name, monitor, tuple(read), words)


SECTIONS = {
    section.name: section
    for section in (
        *(section_of(m.name, "GGNSpectrumMonitor", CURVATURE, m) for m in MATRICES.values()),
        *(
            section_of(m.directions, "DirectionalDerivativesMonitor", DIRECTIONS, m)
            for m in MATRICES.values()
            if m.has_directions
        ),
        Section("ntk", "NTKMonitor", NTK),
        Section("cost", "", statistics_of(cost)),
    )
}

_OURS = re.compile(rf"(?:^|[^A-Za-z0-9])({'|'.join(map(re.escape, SECTIONS))})/(.+)$")


@dataclass(frozen=True)
class LoggedKey:
    """A key as a logger has it, ``<start><section>/[<group>/]<name>``.

    Attributes:
        start: What a logger and the monitor's prefix put before.
        section: Of the table.
        group: The parameter group; empty for the only one.
        statistic: Of the table.
        name: Last part of the key.
    """

    start: str
    section: Section
    group: str
    statistic: Statistic
    name: str

    @property
    def each(self) -> str:
        """Which of the statistic's keys it is: an index or a layer, else empty."""
        return self.name[len(self.statistic.stem) + 1 :]


@lru_cache(maxsize=4096)
def find_key(key: str, *kinds: Kind) -> LoggedKey | None:
    """Take a logged key apart; None for one that is not in the table.

    Args:
        key: As a logger has it.
        kinds: Of the statistic, since a figure and an array may share a name.
    """
    found = _OURS.search(key)
    if found is None:
        return None
    section = SECTIONS[found[1]]
    for statistic in section.statistics:
        match = re.fullmatch(f"(?:(.+)/)?({statistic.pattern()})", found[2])
        if match is not None and statistic.kind in kinds:
            return LoggedKey(key[: found.start(1)], section, match[1] or "", statistic, match[2])
    return None
