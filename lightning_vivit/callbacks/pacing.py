"""How much of the wall-clock time of a fit the monitors take, and whether they may take more."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Pacer:
    """Counts the seconds of all monitors of a Trainer.

    Attributes:
        spent: Seconds in monitored steps since `start`.
        last: Seconds of the last monitored step, all monitors together.
    """

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Begin to count: a fit starts."""
        self._started = time.perf_counter()
        self.spent = 0.0
        self.last = 0.0
        self._step: float | None = None  # seconds of the monitored step that goes on

    @property
    def counting(self) -> bool:
        """Whether a monitor has computed since `end_step`."""
        return self._step is not None

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Count what one monitor does."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._step = (self._step or 0.0) + time.perf_counter() - began

    def affords(self, budget: float | None) -> bool:
        """Whether one more monitored step keeps the share under a budget.

        Monitors of the same step get the same answer: what the step itself has cost so far does
        not count. The first monitored step of a fit is always affordable, since its cost is
        unknown.

        Args:
            budget: Share of wall-clock, None for no limit.
        """
        if budget is None or self.last == 0.0:
            return True
        elapsed = time.perf_counter() - self._started - (self._step or 0.0)
        return self.spent + self.last <= budget * (elapsed + self.last)

    def end_step(self) -> tuple[float, float] | None:
        """Seconds of the step that ends and share of wall-clock so far; None if nobody computed."""
        if self._step is None:
            return None
        self.last, self._step = self._step, None
        self.spent += self.last
        return self.last, self.spent / max(time.perf_counter() - self._started, self.spent)
