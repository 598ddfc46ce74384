"""One call of a loss function, as it was seen or given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class LossCall:
    """What a loss function was called with, and how its result enters the loss.

    Attributes:
        name: Name of the functional loss, for example `"cross_entropy"`, or `"custom"`.
        outputs: The model outputs as the loss got them. For `nll_loss` the logits where they are
            known, else the log-probabilities.
        target: The second argument of the loss.
        options: Keyword options of the functional. For `"custom"`: `function`, a callable of
            outputs and target that returns a scalar, and `reduction`, `"mean"` or `"sum"`. For
            `nll_loss`, `traced` says whether the outputs are logits.
        multiplier: Derivative of the loss with respect to the result of this call: a number, or
            for reduction `"none"` a tensor of the shape of that result.
    """

    name: str
    outputs: Tensor
    target: Any
    options: Mapping[str, Any] = field(default_factory=dict)
    multiplier: float | Tensor = 1.0
