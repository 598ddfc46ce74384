"""What the monitors cost."""

from __future__ import annotations

from typing import NamedTuple

from lightning_vivit.statistics.key import Key


class Cost(NamedTuple):
    """Of the monitored step that ends, all monitors together.

    Attributes:
        seconds: Wall-clock seconds.
        overhead: Share of the run's wall-clock so far that the monitors took.
    """

    seconds: float
    overhead: float


@Key(
    name="seconds",
    category="Cost",
    chart="Time of a monitored step",
    unit="seconds",
    definition="wall-clock time of this monitored step, all monitors together",
    range="> 0",
    reading="if too long: fewer samples, `mc_samples`, a rarer schedule",
    cost="none",
)
def seconds(cost: Cost) -> float:
    """Seconds of the step."""
    return cost.seconds


@Key(
    name="overhead",
    category="Cost",
    chart="Share of the run's time spent in the monitors",
    definition="share of the run's wall-clock so far that the monitors took",
    range="0 to 1",
    reading="0.05 means that the run is 5 % monitoring",
    cost="none",
)
def overhead(cost: Cost) -> float:
    """Share of the run."""
    return cost.overhead
