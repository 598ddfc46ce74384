"""The values of one monitored step, as loggers take them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

from torch import Tensor

from lightning_vivit.statistics import Draw, Findings

_T = TypeVar("_T")


@dataclass
class LogEntry:
    """The values of one monitored step, under the full keys of the loggers.

    Attributes:
        step: On the x axis of Lightning's own monitors.
        scalars: Key -> number.
        histograms: Key -> samples, not bins.
        figures: Key -> function that draws.
        arrays: Key -> raw tensor.
        monitor: Whose they are, the first part of its keys; names its files.
        limits: Key of a scalar -> the value that it is read against.
    """

    step: int
    scalars: dict[str, float] = field(default_factory=dict)
    histograms: dict[str, Tensor] = field(default_factory=dict)
    figures: dict[str, Draw] = field(default_factory=dict)
    arrays: dict[str, Tensor] = field(default_factory=dict)
    monitor: str = ""
    limits: dict[str, float] = field(default_factory=dict)

    def add(self, path: str, findings: Findings) -> list[str]:
        """Take the findings under ``path/name``; returns the keys of the scalars."""
        added = {key: float(value) for key, value in _under(path, findings.scalars).items()}
        self.scalars.update(added)
        self.histograms.update(_under(path, findings.histograms))
        self.figures.update(_under(path, findings.figures))
        self.arrays.update(_under(path, findings.arrays))
        self.limits.update(_under(path, findings.limits))
        return list(added)


def _under(path: str, named: dict[str, _T]) -> dict[str, _T]:
    return {f"{path}/{name}": value for name, value in named.items()}
