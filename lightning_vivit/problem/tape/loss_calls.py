"""What is noted of a loss call while it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge


@dataclass(frozen=True)
class RecordedLoss:
    """One call of a loss function on outputs that need a gradient.

    The result may be changed in place afterwards (``loss /= 2``), so what counts is a copy of it
    and the place in the graph where its gradient arrives.
    """

    name: str
    given: Tensor  # the first argument
    outputs: Tensor  # the same; for nll_loss the logits behind it, where they are known
    target: Any
    options: dict[str, Any]
    result: Tensor  # a copy
    edge: GradientEdge
    versions: tuple[int, ...]  # of given, outputs and target at the call

    def is_whole(self, loss: Tensor) -> bool:
        """Whether a loss is the unchanged result of this call."""
        return loss.requires_grad and get_gradient_edge(loss) == self.edge

    @property
    def overwritten(self) -> bool:
        """Whether an argument was changed in place after the call."""
        return self.versions != versions(self.given, self.outputs, self.target)


def versions(*values: Any) -> tuple[int, ...]:
    """How often each tensor was written to."""
    return tuple(
        value._version for value in values if isinstance(value, Tensor) and not value.is_inference()
    )
