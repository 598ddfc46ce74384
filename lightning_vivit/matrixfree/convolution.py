"""A convolution whose backward pass is differentiated in its cotangent only.

J v is the derivative of J^T u with respect to u. torch's double backward of a convolution also
computes what belongs to its input and weight and throws it away: three more convolutions, measured
on one CPU thread as two fifths of J v of a small CNN.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CONVOLUTIONS: dict[Callable[..., Any], int] = {F.conv1d: 1, F.conv2d: 2, F.conv3d: 3}
_NAMES = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


def convolve(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """Run `F.conv1d`, `F.conv2d` or `F.conv3d`.

    Args:
        func: One of these.
        args: Its positional arguments.
        kwargs: Its keyword arguments.

    Returns:
        Its result, differentiable twice; the second time in the cotangent only.
    """
    given = dict(zip(_NAMES, args, strict=False)) | dict(kwargs)
    axes = CONVOLUTIONS[func]
    x, weight, bias = given["input"], given["weight"], given.get("bias")
    padding = given.get("padding", 0)
    plain = type(x) in (Tensor, torch.nn.Parameter) and x.layout == torch.strided
    if isinstance(padding, str) or x.ndim != axes + 2 or not plain:
        return func(*args, **kwargs)
    sizes = [given.get("stride", 1), padding, given.get("dilation", 1)]
    whole = [[int(v)] * axes if isinstance(v, int) else [int(i) for i in v] for v in sizes]
    whole = [size * axes if len(size) == 1 else size for size in whole]
    return _Forward.apply(x, weight, bias, (*whole, int(given.get("groups", 1))))  # type: ignore[no-any-return]


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Any) -> Tensor:
    stride, padding, dilation, groups = geometry
    none = [0] * len(stride)
    return torch.convolution(x, weight, bias, stride, padding, dilation, False, none, groups)


def _backward(cotangent: Tensor, x: Tensor, weight: Tensor, geometry: Any, wanted: Any) -> Any:
    stride, padding, dilation, groups = geometry
    none = [0] * len(stride)
    return torch.ops.aten.convolution_backward(
        *(cotangent, x, weight, [weight.shape[0]], stride, padding, dilation),
        *(False, none, groups, list(wanted)),
    )


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Any) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = geometry
        return _convolution(x, weight, bias, geometry)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        wanted = tuple(ctx.needs_input_grad[:3])
        if torch.is_grad_enabled():
            found = _Backward.apply(cotangent, x, weight, ctx.geometry, wanted)
        else:
            found = _backward(cotangent, x, weight, ctx.geometry, wanted)
        return (*found, None)


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, cotangent: Tensor, x: Tensor, weight: Tensor, geometry: Any, wanted: Any
    ) -> Any:
        ctx.save_for_backward(x, weight)
        ctx.set_materialize_grads(False)
        ctx.geometry = geometry
        return _backward(cotangent, x, weight, geometry, wanted)

    @staticmethod
    def backward(ctx: Any, *pushed: Tensor | None) -> Any:
        x, weight = ctx.saved_tensors
        along_x, along_weight, along_bias = pushed
        total = None
        if along_x is not None:
            total = _convolution(along_x, weight, None, ctx.geometry)
        if along_weight is not None:
            part = _convolution(x, along_weight, along_bias, ctx.geometry)
            total = part if total is None else total + part
        elif along_bias is not None:
            part = along_bias.reshape(-1, *([1] * (x.ndim - 2)))
            if total is None:
                total = part.expand(_convolution(x, weight, None, ctx.geometry).shape)
            else:
                total = total + part
        return total, None, None, None, None
