"""Max pooling before the ReLU that it follows, also where the maps were padded between the two.

max(relu(x)) = relu(max(x)), value and derivative, and a backward pass through the ReLU then reads
and writes a quarter of the entries (for 2x2 windows). Padding with a constant that is not negative
is the same before a ReLU and after it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import ReferenceType, ref

import torch
import torch.nn.functional as F
from torch import Tensor

_RELUS = (F.relu, torch.relu, Tensor.relu)
_POOLS = (F.max_pool1d, F.max_pool2d, F.max_pool3d)
OPERATIONS = frozenset((*_RELUS, F.pad, *_POOLS))


@dataclass(frozen=True)
class _Relu:
    """A ReLU, padded or not.

    Attributes:
        result: What came out.
        x: What went in.
        version: Of what went in, when it went in.
        before: Makes what would have come out without the ReLU.
    """

    result: ReferenceType[Tensor]
    x: Tensor
    version: int
    before: Callable[[], Tensor]

    def gave(self, value: Any) -> bool:
        """Whether a tensor is the result, and no one has changed or watches anything."""
        result = self.result()
        if result is None or result is not value:
            return False
        if result._version or self.x._version != self.version:
            return False
        return not result._backward_hooks and not result.retains_grad


class ReluBeforePool:
    """Remembers the last ReLU, and pools before it what is pooled after it."""

    def __init__(self) -> None:
        self._last: _Relu | None = None

    def run(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Run one of `OPERATIONS`, max pooling without indices."""
        last, self._last = self._last, None
        if last is not None and not (args and last.gave(args[0])):
            last = None
        if last is not None and func in _POOLS:
            return F.relu(func(last.before(), *args[1:], **kwargs))
        result = func(*args, **kwargs)
        if func in _RELUS:
            x = args[0] if args else kwargs.get("input")
            if isinstance(x, Tensor) and isinstance(result, Tensor) and result is not x:
                self._last = _Relu(ref(result), x, x._version, lambda: x)
        elif last is not None and func is F.pad and _is_kept_by_relu(*args[1:], **kwargs):
            before = last.before
            padded = lambda: F.pad(before(), *args[1:], **kwargs)  # noqa: E731
            self._last = _Relu(ref(result), last.x, last.version, padded)
        return result


def _is_kept_by_relu(pad: Any, mode: str = "constant", value: float | None = None) -> bool:
    """Whether padding comes to the same before a ReLU and after it."""
    return mode == "constant" and (value or 0.0) >= 0.0
