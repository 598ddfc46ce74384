"""What figures over steps remember: a bounded number of steps, spread over the whole run."""

from __future__ import annotations

import torch
from torch import Tensor

LIMIT = 32  # steps that are kept


class History:
    """Vectors of steps. When it is full, every second step is forgotten, the first one stays.

    The steps that are left lie evenly over the run, whatever its length. The latest step is there
    at any time.

    Args:
        limit: How many steps are kept at most.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._stride = 1
        self._seen = 0
        self._kept: list[tuple[int, Tensor]] = []
        self._latest: tuple[int, Tensor] | None = None

    def add(self, step: int, values: Tensor) -> None:
        """Remember the values of a step, [K]; K may change."""
        entry = (step, values.detach().to("cpu", torch.float32, copy=True))
        self._latest = entry
        if self._seen % self._stride == 0:
            if len(self._kept) == self._limit - 1:  # one place is the latest's
                self._kept = self._kept[::2]
                self._stride *= 2
            if self._seen % self._stride == 0:
                self._kept.append(entry)
        self._seen += 1

    def entries(self) -> list[tuple[int, Tensor]]:
        """(step, values) in the order of the steps."""
        if self._latest is None or (self._kept and self._kept[-1] is self._latest):
            return list(self._kept)
        return [*self._kept, self._latest]
