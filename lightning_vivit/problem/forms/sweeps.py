"""Equivalent forms of operations, for sweeps on a CPU: the same values, faster backward passes.

A recorded pass is backpropagated through once for each column, so what its operations leave behind
for that matters more than how they run. In float32:

- A 2-dimensional convolution in the memory format channels_last needs no reordering of its maps by
  oneDNN. Its backward pass is slower only with many channels and a large kernel at few positions.
  What follows keeps the format.
- Batch normalisation with running statistics is a scale and a shift. The backward pass of
  `batch_norm` sums for its parameters' gradients, too, although nobody asked for them.
- Max pooling goes before the ReLU that it follows, see `pooling`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_vivit.problem.forms.pooling import OPERATIONS, ReluBeforePool
from lightning_vivit.problem.forms.recomputation import is_recomputed

_LARGE_WEIGHT = 1 << 16  # products of channels from which blocked maps are faster


class Substitutes:
    """Runs operations, some of them in another form.

    Attributes:
        changed_format: Whether the memory format of a tensor was changed. Code that depends on
            it, such as `Tensor.view`, may fail then.
    """

    def __init__(self) -> None:
        """Nothing was run yet."""
        self.changed_format = False
        self._pooling = ReluBeforePool()

    def run(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """The result of one operation.

        Args:
            func: The operation.
            args: Its arguments.
            kwargs: Its arguments by name.
        """
        if is_recomputed():
            return func(*args, **kwargs)
        if func is F.conv2d:
            return self._convolved(args, kwargs)
        if func in OPERATIONS:
            return self._pooling.run(func, args, kwargs)
        found = _scaled_and_shifted(args, kwargs) if func is F.batch_norm else None
        return func(*args, **kwargs) if found is None else found

    def _convolved(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if len(args) < 2 or not all(_is_plain(each) for each in args[:2]):
            return F.conv2d(*args, **kwargs)
        maps, weight, *others = args
        memory_format = _memory_format(weight)
        if not maps.is_contiguous(memory_format=memory_format):
            self.changed_format = True
            maps = maps.contiguous(memory_format=memory_format)
        return F.conv2d(maps, weight.contiguous(memory_format=memory_format), *others, **kwargs)


def _is_plain(value: Any) -> bool:
    """Whether it is a batch of maps, or a weight, that oneDNN multiplies."""
    return (
        type(value) in (Tensor, torch.nn.Parameter)
        and value.ndim == 4
        and value.dtype == torch.float32
        and value.device.type == "cpu"
        and torch.backends.mkldnn.is_available()
    )


def _memory_format(weight: Tensor) -> torch.memory_format:
    outputs, inputs, *kernel = weight.shape
    if outputs * inputs >= _LARGE_WEIGHT and kernel != [1, 1]:
        return torch.contiguous_format
    return torch.channels_last


def _scaled_and_shifted(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Batch normalisation with running statistics, differentiable; None if it is another one."""
    given = inspect.signature(F.batch_norm).bind(*args, **kwargs)
    given.apply_defaults()
    inputs, mean, variance, weight, bias, training, _, eps = given.arguments.values()
    if training or mean is None or variance is None:
        return None
    if type(inputs) is not Tensor or inputs.device.type != "cpu":
        return None
    if any(t is not None and t.dtype != inputs.dtype for t in (mean, variance, weight, bias)):
        return None
    scale = (variance + eps).rsqrt()
    if weight is not None:
        scale = scale * weight
    shift = -mean * scale
    if bias is not None:
        shift = shift + bias
    shape = (-1,) + (1,) * (inputs.ndim - 2)
    return torch.addcmul(shift.view(shape), inputs, scale.view(shape))
