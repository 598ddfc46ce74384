"""Run a model on its inputs, and check what it returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lightning_vivit.errors import ProblemError


def forward(model: nn.Module, inputs: Any) -> Any:
    """What a model returns for inputs: a dict by name, a tuple or list by position."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, (tuple, list)) and not isinstance(inputs, PackedSequence):
        return model(*inputs)
    return model(inputs)


def check_outputs(outputs: Any) -> Tensor:
    """The outputs, after the checks that they can be differentiated by sample.

    Raises:
        ProblemError: They are no tensor, or have no derivative or no row for each sample.
    """
    if not isinstance(outputs, Tensor):
        raise ProblemError(
            f"The model returned {type(outputs).__name__}, expected one tensor [N, ...]. Wrap the "
            "model in a module that returns the tensor to be differentiated."
        )
    if not outputs.is_floating_point():
        raise ProblemError(
            f"The outputs have dtype {outputs.dtype}, which has no derivative. Supported: "
            "floating point outputs. Differentiate the logits instead of the predicted classes."
        )
    if outputs.ndim == 0:
        raise ProblemError(
            "The outputs are one number for the whole batch, expected one row for each sample, "
            "[N, ...]. Return the outputs before they are reduced."
        )
    if not outputs.requires_grad:
        raise ProblemError(
            "The outputs do not depend on any trainable parameter (they need no gradient). Check "
            "that the model does not detach them or run under no_grad, and that the asked for "
            "parameters are used."
        )
    return outputs
