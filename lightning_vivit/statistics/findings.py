"""What a monitor found in one parameter group at one step, independent of who shows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
