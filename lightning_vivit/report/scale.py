"""Scales of axes: ranges, ticks and positions, linear or logarithmic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# Positive values whose ratio lies between are shown on a logarithmic axis; a larger one comes from
# rounding of what should be zero.
LOG_RATIOS = (30.0, 1e9)
MARGIN = 0.05
TICKS = 5


@dataclass(frozen=True)
class Scale:
    """Maps values to positions between `start` and `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    @classmethod
    def around(
        cls, values: Sequence[float], start: float, end: float, may_be_log: bool = True
    ) -> Scale:
        """A scale that shows all values, which are finite; without values from 0 to 1."""
        low, high = (min(values), max(values)) if values else (0.0, 1.0)
        log = may_be_log and low > 0 and LOG_RATIOS[0] < high / low < LOG_RATIOS[1]
        if log:
            factor = (high / low) ** MARGIN
            low, high = low / factor, high * factor
        else:
            margin = MARGIN * (high - low)
            if margin <= 1e-12 * max(abs(low), abs(high)):
                margin = 0.1 * abs(high) or 0.5
            low, high = low - margin, high + margin
        return cls(low, high, start, end, log)

    def at(self, value: float) -> float:
        """The position of a value."""
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values inside of the axis."""
        if self.log:
            first, last = math.ceil(math.log10(self.low)), math.floor(math.log10(self.high))
            every = max(1, -(-(last - first + 1) // TICKS))
            powers = [10.0**power for power in range(first, last + 1, every)]
            if len(powers) > 1:
                return powers
        step = _round_step((self.high - self.low) / TICKS)
        number = math.ceil(self.low / step)
        found = []
        while number * step <= self.high:
            found.append(number * step)
            number += 1
        return [tick for tick in found if not self.log or tick > 0]


def label(tick: float) -> str:
    """A tick as text."""
    return "0" if abs(tick) < 1e-300 else f"{tick:.6g}"


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
