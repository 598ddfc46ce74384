"""Operations whose backward pass torch cannot differentiate, in terms of others that it can."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lightning_vivit.problem.forms.convolution import CONVOLUTIONS, convolve
from lightning_vivit.problem.forms.pooling import OPERATIONS, ReluBeforePool
from lightning_vivit.problem.forms.recomputation import is_recomputed


class TwiceDifferentiable(TorchFunctionMode):
    """Replace sums and means of embedding bags by a lookup and an addition while active.

    Args:
        lean: Also replace convolutions, by ones whose backward pass is only differentiated in
            its cotangent: enough for J v, not for the Hessian. And pool before a ReLU.
    """

    def __init__(self, lean: bool = False) -> None:
        super().__init__()
        self._lean = lean
        self._pooling = ReluBeforePool()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run one operation."""
        if func is F.embedding_bag:
            options = inspect.signature(func).bind(*args, **(kwargs or {}))
            options.apply_defaults()
            if options.arguments["mode"] != "max" and options.arguments["max_norm"] is None:
                return _embedding_bag(**options.arguments)
        if self._lean and func in CONVOLUTIONS and not is_recomputed():
            return convolve(func, args, kwargs or {})
        if self._lean and func in OPERATIONS and not is_recomputed():
            return self._pooling.run(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))


def _embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None,
    mode: str,
    per_sample_weights: Tensor | None,
    include_last_offset: bool,
    padding_idx: int | None,
    **_: Any,
) -> Tensor:
    """`F.embedding_bag` for sums and means, [bags, width]."""
    index = input.flatten()
    if offsets is None:
        count, length = input.shape
        bags = torch.arange(count, device=index.device).repeat_interleave(length)
    else:
        starts = offsets[:-1] if include_last_offset else offsets
        count = starts.numel()
        places = torch.arange(index.numel(), device=index.device)
        bags = torch.bucketize(places, starts.to(places), right=True) - 1
    rows = F.embedding(index, weight)
    kept = torch.ones_like(index, dtype=weight.dtype)
    if padding_idx is not None:
        kept = (index != padding_idx % weight.shape[0]).to(weight.dtype)
    factors = kept if per_sample_weights is None else kept * per_sample_weights.flatten()
    total = rows.new_zeros(count, weight.shape[1])
    total = total.index_add(0, bags, rows * factors.unsqueeze(1))
    if mode == "sum":
        return total
    sizes = kept.new_zeros(count).index_add(0, bags, kept).clamp(min=1.0)
    return total / sizes.unsqueeze(1)
