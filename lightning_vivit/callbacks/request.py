"""What one monitor wants evaluated, and of what."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace

import torch

from lightning_vivit.callbacks.options import ProblemFactory
from lightning_vivit.callbacks.probe import BatchSource
from lightning_vivit.evaluation.request import Request


@dataclass(frozen=True)
class MonitorRequest:
    """What one monitor wants evaluated, and of what.

    Attributes:
        source: Which batch.
        wanted: What is wanted of it.
        problem: States the problem in place of the replayed training_step.
        replay_dtype: What the network is evaluated in; None for its own.
        vectors: Vectors of the size of the parameters that the monitor keeps.
    """

    source: BatchSource
    wanted: Request
    problem: ProblemFactory | None = None
    replay_dtype: torch.dtype | None = None
    vectors: int = 0

    @property
    def key(self) -> Hashable:
        """Requests with equal keys share an evaluation; k may differ, the largest is evaluated."""
        groups = repr(self.wanted.param_groups)
        same = replace(self.wanted, k=1, param_groups="all")
        return *self.source.key, groups, same, id(self.problem), self.replay_dtype
