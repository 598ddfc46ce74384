"""Forms of a recorded program: as in evaluation mode, or with more bits.

The evaluation form differs from what ran only where `eval()` would have switched a layer that torch
implements: batch and instance normalisation take the running statistics from before the step, and
dropout of every kind is off. Everything else stays what the step did: its branches, its own random
draws, batch statistics that have no running ones (such as those of standardised weights).
Stochastic depth is written by hand in every library, so it is one of the step's own draws.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_vivit.problem.isolation.numerics import default_dtype
from lightning_vivit.problem.tape.effects import effects_of
from lightning_vivit.problem.tape.program import (
    Draw,
    Operation,
    Program,
    State,
    replaced,
)
from lightning_vivit.problem.tape.surroundings import tensors_among

# Position and name of the argument that `eval()` reaches.
_FLAGS: dict[Callable[..., Any], tuple[int, str]] = {
    **dict.fromkeys((F.dropout, F.dropout1d, F.dropout2d, F.dropout3d), (2, "training")),
    **dict.fromkeys((F.alpha_dropout, F.feature_alpha_dropout), (2, "training")),
    **dict.fromkeys((torch.dropout, torch.dropout_, torch.native_dropout), (2, "train")),
    **dict.fromkeys((torch.alpha_dropout, torch.alpha_dropout_), (2, "train")),
    **dict.fromkeys((torch.feature_dropout, torch.feature_dropout_), (2, "train")),
    **dict.fromkeys((torch.feature_alpha_dropout, torch.feature_alpha_dropout_), (2, "train")),
    **dict.fromkeys((F.rrelu, torch.rrelu, torch.rrelu_), (3, "training")),
    **dict.fromkeys((F.batch_norm, torch.batch_norm), (5, "training")),
    **dict.fromkeys((F.instance_norm, torch.instance_norm), (5, "use_input_stats")),
    F.multi_head_attention_forward: (13, "training"),
    F.scaled_dot_product_attention: (4, "dropout_p"),
}
_RUNNING = {F.batch_norm: 1, F.instance_norm: 1, torch.batch_norm: 3, torch.instance_norm: 3}
_RECURRENT = frozenset((torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu))
_CASTS = frozenset((Tensor.float, Tensor.half, Tensor.bfloat16))


def evaluation_form(program: Program) -> Program:
    """What the program would have been in evaluation mode."""
    return replace(program, operations=tuple(map(_evaluated, program.operations)))


def _evaluated(operation: Operation) -> Operation:
    function, args, kwargs = operation[:3]
    if function in _RECURRENT:
        flag = next(place for place, value in enumerate(args) if isinstance(value, bool))
        changed = (*args[: flag + 2], 0.0, *args[flag + 3 :])  # biases, layers, dropout
        return operation._replace(args=changed, draw=None)
    if function not in _FLAGS:
        return operation
    if function in _RUNNING and _argument(operation, _RUNNING[function], "running_mean") is None:
        return operation
    place, name = _FLAGS[function]
    off = 0.0 if name == "dropout_p" else False
    if len(args) > place:
        changed = (*args[:place], off, *args[place + 1 :])
        return operation._replace(args=changed, draw=None)
    return operation._replace(kwargs={**kwargs, name: off}, draw=None)


def _argument(operation: Operation, place: int, name: str) -> Any:
    args = operation.args
    return args[place] if len(args) > place else operation.kwargs.get(name)


def raised(program: Program, dtype: torch.dtype) -> Program:
    """The program with at least so many bits, and without autocast.

    Args:
        program: The program.
        dtype: torch.float32 or torch.float64; dtypes with fewer bits become this one. Random
            numbers are drawn as they were and converted.
    """

    def more(value: Any) -> Any:
        return wider(value, dtype) if isinstance(value, torch.dtype) else value

    def one(operation: Operation) -> Operation:
        operation = operation._replace(state=State(operation.state.grad))
        if operation.draw is not None and effects_of(operation.function).noise:
            noise = _Noise(operation.function, operation.draw, program.default_dtype, dtype)
            return operation._replace(function=noise)
        function, args, kwargs = operation[:3]
        if function in _CASTS:
            return operation._replace(function=Tensor.to, args=(args[0], dtype), kwargs={})
        return operation._replace(args=replaced(args, more), kwargs=replaced(kwargs, more))

    return replace(
        program,
        operations=tuple(map(one, program.operations)),
        default_dtype=wider(program.default_dtype, dtype),
        dtype=dtype,
        autocast=(),
    )


def wider(found: torch.dtype, dtype: torch.dtype) -> torch.dtype:
    """A dtype, or the given one if it is of the same sort and has more bits."""
    if found.is_complex:
        return torch.complex128 if dtype == torch.float64 else found
    if not found.is_floating_point or found.itemsize >= dtype.itemsize:
        return found
    return dtype


class _Noise:
    """Random numbers in the dtype that they had, converted to another one."""

    def __init__(
        self, function: Callable[..., Any], draw: Draw, default: torch.dtype, dtype: torch.dtype
    ) -> None:
        self._function, self._draw = function, draw
        self._default, self._dtype = default, dtype

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Draw."""
        dtypes = iter(self._draw.dtypes)

        def back(value: Any) -> Any:
            return value.to(next(dtypes)) if isinstance(value, Tensor) else value

        target = next(tensors_among([args, kwargs]), None)
        with default_dtype(self._default):
            drawn = self._function(*replaced(args, back), **replaced(kwargs, back))
        if effects_of(self._function).in_place:
            assert target is not None
            with torch.no_grad():
                return target.copy_(drawn)
        return replaced(drawn, lambda value: value.to(wider(value.dtype, self._dtype)))
