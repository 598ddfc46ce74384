"""A monitor whose keys are declared in the table of statistics."""

from __future__ import annotations

import re
from abc import abstractmethod

from torch import Tensor

from lightning_vivit.callbacks.base import Monitor
from lightning_vivit.callbacks.state import References
from lightning_vivit.evaluation.interface import Result
from lightning_vivit.loggers import Chart, Findings, charts
from lightning_vivit.statistics import AllGroups, Draw, Look, Memory, Section, Statistic, measure


class StatisticsMonitor(Monitor):
    """Walks over the statistics of its section at each monitored step.

    Attributes:
        table: Its section of the table.
    """

    table: Section

    def forget(self) -> None:
        """Forget what later steps are compared with."""
        self._memories: dict[str, Memory] = {}
        self._seen: set[str] = set()  # last parts of the keys of the scalars so far

    @abstractmethod
    def look(self, evaluation: Result, group: str, memory: Memory) -> Look:
        """What the statistics of one parameter group are functions of."""

    def measure(self, evaluation: Result, group: str) -> Findings:
        """What the statistics of one parameter group found."""
        memory = self._memories.setdefault(group, Memory())
        found = measure(self._statistics(), self.look(evaluation, group, memory))
        self._seen.update(found.scalars)
        return found

    def overview(self) -> dict[str, Draw]:
        """Figures over all parameter groups."""
        groups = AllGroups(self._memories, self.table.words)
        drawn = (s.expand(s.compute(groups)) for s in self._statistics() if s.kind == "overview")
        return {name: draw for named in drawn for name, draw in named.items()}

    def charts(self) -> list[Chart]:
        """The charts of what the first step showed, and of what may come later."""
        seen = self._seen

        def shown(statistic: Statistic) -> bool:
            written = re.compile(statistic.pattern()).fullmatch
            return statistic.late or not seen or any(map(written, seen))

        statistics = filter(shown, self._statistics())
        return [
            *charts(self.table, statistics, self.settings.prefix, self.grouped),
            *super().charts(),
        ]

    def references(self) -> dict[str, dict[str, Tensor]]:
        """What later steps are compared with."""
        return {group: each.tensors for group, each in self._memories.items() if each.tensors}

    def set_references(self, references: References) -> None:
        """Take it from a checkpoint."""
        for group, tensors in references.items():
            self._memories.setdefault(group, Memory()).tensors = dict(tensors)

    def _statistics(self) -> list[Statistic]:
        """Those that the monitor's switches ask for."""
        return [s for s in self.table.statistics if not s.option or getattr(self, s.option)]
