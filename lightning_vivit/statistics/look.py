"""What a statistic is a function of: one parameter group at one monitored step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from lightning_vivit.evaluation.interface import Result
from lightning_vivit.figures import History


@dataclass
class Memory:
    """What the statistics of one parameter group keep between monitored steps.

    Attributes:
        tensors: What later steps are compared with; checkpoints take it along. Nobody writes to
            the tensors, so they need not be copied.
        history: Eigenvalues of earlier steps, for figures; checkpoints leave it out.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    history: History = field(default_factory=History)


@dataclass
class Look:
    """One parameter group at one monitored step, with what its statistics share.

    Subclasses hold shared work in cached properties, so that it is done at most once, and only if
    a statistic asks.

    Attributes:
        result: What the evaluation of the batch answers.
        group: The parameter group.
        step: On the x axis of the loggers.
        memory: Of this group.
        k: How many leading eigenvalues or directions to tell of.
    """

    result: Result
    group: str
    step: int
    memory: Memory
    k: int = 0


@dataclass
class AllGroups:
    """What an overview is a function of: all parameter groups after a monitored step.

    Attributes:
        memories: Group -> what its statistics keep.
        words: `Section.words`.
    """

    memories: Mapping[str, Memory]
    words: Mapping[str, str]
