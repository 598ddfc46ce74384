"""A convolution whose backward pass is differentiated in its cotangent only.

J v is the derivative of J^T u with respect to u. torch's double backward of a convolution also
computes what belongs to its input and weight and throws it away: three more convolutions, measured
on one CPU thread as two fifths of J v of a small CNN.

With few input channels, as in a first layer, a convolution with the tangent of the weight is a
product with the input's patches instead: measured up to 10 times faster on a CPU (1 channel, 32
filters 3x3) and never slower for up to 4 channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_vivit.rules.windows import patches

CONVOLUTIONS: dict[Callable[..., Any], int] = {F.conv1d: 1, F.conv2d: 2, F.conv3d: 3}
_FEW_CHANNELS = 4
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


def _has_small_patches(x: Tensor, weight: Tensor, geometry: Any) -> bool:
    """Whether patches are fast, and not larger than twice the output."""
    few = geometry[3] == 1 and weight.shape[1] <= _FEW_CHANNELS and x.device.type == "cpu"
    return few and weight[0].numel() <= 2 * weight.shape[0]


def _patches(x: Tensor, weight: Tensor, geometry: Any) -> Tensor:
    """[N, channels, *kernel, *out]."""
    stride, padding, dilation, _ = geometry
    found = patches(x, weight.shape[2:], stride, [(size, size) for size in padding], dilation)
    return found.contiguous()


def _filter(parts: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution, [N, O, *out], from its patches."""
    rank, samples = weight.ndim - 2, parts.shape[0]
    flat = parts.reshape(samples, weight[0].numel(), -1)
    rows = weight.reshape(1, weight.shape[0], -1).expand(samples, -1, -1)
    if bias is None:
        found = torch.bmm(rows, flat)
    else:
        found = torch.baddbmm(bias.reshape(1, -1, 1), rows, flat)
    return found.reshape(samples, weight.shape[0], *parts.shape[2 + rank :])


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
        ctx.patches = None
        return _backward(cotangent, x, weight, geometry, wanted)

    @staticmethod
    def backward(ctx: Any, *pushed: Tensor | None) -> Any:
        x, weight = ctx.saved_tensors
        along_x, along_weight, along_bias = pushed
        total = None
        if along_x is not None:
            total = _convolution(along_x, weight, None, ctx.geometry)
        elif along_weight is not None and _has_small_patches(x, weight, ctx.geometry):
            if ctx.patches is None:  # kept for the next tangents
                ctx.patches = _patches(x, weight, ctx.geometry)
            total = _filter(ctx.patches, along_weight, along_bias)
            return total, None, None, None, None
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
