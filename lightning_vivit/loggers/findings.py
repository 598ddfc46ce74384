"""What a monitor found at one step, independent of who shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_T = TypeVar("_T")

# Draws a figure. It is called once for each logger that shows pictures, and only then.
Draw: TypeAlias = "Callable[[], Figure]"


@dataclass
class Findings:
    """What a monitor says about one parameter group, by the last part of the keys.

    Attributes:
        scalars: Numbers, or tensors of one element.
        histograms: Samples, not bins.
        figures: Functions that draw.
        arrays: Raw results for the user's own code and for dumps.
        limits: Name of a scalar -> the value that it is read against.
    """

    scalars: dict[str, float | Tensor] = field(default_factory=dict)
    histograms: dict[str, Tensor] = field(default_factory=dict)
    figures: dict[str, Draw] = field(default_factory=dict)
    arrays: dict[str, Tensor] = field(default_factory=dict)
    limits: dict[str, float] = field(default_factory=dict)


@dataclass
class Report:
    """The values of one monitored step, under the full keys of the loggers.

    Attributes:
        step: On the x axis of Lightning's own monitors.
        scalars: Key -> number.
        histograms: Key -> samples, not bins.
        figures: Key -> function that draws.
        arrays: Key -> raw tensor.
        monitor: Who reports, the first part of its keys; names its files.
        limits: Key of a scalar -> the value that it is read against.
    """

    step: int
    scalars: dict[str, float] = field(default_factory=dict)
    histograms: dict[str, Tensor] = field(default_factory=dict)
    figures: dict[str, Draw] = field(default_factory=dict)
    arrays: dict[str, Tensor] = field(default_factory=dict)
    monitor: str = ""
    limits: dict[str, float] = field(default_factory=dict)

    def add(self, path: str, findings: Findings) -> Iterator[str]:
        """Take the findings under ``path/name``; yields the keys of the scalars."""
        for name, value in findings.scalars.items():
            key = f"{path}/{name}"
            self.scalars[key] = float(value)
            yield key
        self.histograms.update(_under(path, findings.histograms))
        self.figures.update(_under(path, findings.figures))
        self.arrays.update(_under(path, findings.arrays))
        self.limits.update(_under(path, findings.limits))


def _under(path: str, named: dict[str, _T]) -> dict[str, _T]:
    return {f"{path}/{name}": value for name, value in named.items()}
