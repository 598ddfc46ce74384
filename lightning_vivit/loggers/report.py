"""What a monitor found at one step, independent of who shows it."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Report:
    """The values of one monitored step, under the full keys of the loggers."""

    step: int  # on the x axis of Lightning's own monitors
    scalars: dict[str, float] = field(default_factory=dict)
    histograms: dict[str, Tensor] = field(default_factory=dict)  # samples, not bins
