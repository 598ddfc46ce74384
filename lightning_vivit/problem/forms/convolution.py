"""A convolution whose backward pass is differentiated in its cotangent only.

J v is the derivative of J^T u with respect to u. torch's double backward of a convolution also
computes what belongs to its input and weight and throws it away: three more convolutions.

With few input channels, as in a first layer, a convolution with the tangent of the weight and the
gradient of the weight are products with the input's patches instead, which is faster on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_vivit.problem.forms.windows import patches

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
    """[N, channels * taps + 1, L], with ones for the bias at the end."""
    stride, padding, dilation, _ = geometry
    found = patches(x, weight.shape[2:], stride, [(size, size) for size in padding], dilation)
    flat = found.reshape(x.shape[0], weight[0].numel(), -1)
    return torch.cat([flat, flat.new_ones(flat.shape[0], 1, flat.shape[2])], 1)


def _kept(parts: list[Tensor], x: Tensor, weight: Tensor, geometry: Any) -> Tensor:
    """The patches, which are formed once."""
    if not parts:
        parts.append(_patches(x, weight, geometry))
    return parts[0]


def _filter(parts: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution, [N, O, L], from its patches."""
    last = weight.new_zeros(weight.shape[0]) if bias is None else bias
    rows = torch.cat([weight.flatten(1), last.unsqueeze(1)], 1)
    return torch.bmm(rows.expand(parts.shape[0], -1, -1), parts)


def _gradients(
    parts: Tensor, cotangent: Tensor, weight: Tensor, has_bias: bool
) -> tuple[Tensor, Tensor | None]:
    """Gradients of weight and bias from the patches."""
    columns = cotangent.reshape(parts.shape[0], weight.shape[0], -1).transpose(1, 2)
    found = torch.bmm(parts, columns).sum(0).T  # [O, channels * taps + 1]
    return found[:, :-1].reshape(weight.shape), found[:, -1] if has_bias else None


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Any) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry, ctx.has_bias = geometry, bias is not None
        ctx.parts = [] if _has_small_patches(x, weight, geometry) else None
        return _convolution(x, weight, bias, geometry)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        wanted = tuple(ctx.needs_input_grad[:3])
        if torch.is_grad_enabled():
            found = _Backward.apply(cotangent, x, weight, ctx.geometry, wanted, ctx.parts)
        elif ctx.parts is not None and not wanted[0]:
            parts = _kept(ctx.parts, x, weight, ctx.geometry)
            found = (None, *_gradients(parts, cotangent, weight, ctx.has_bias))
        else:
            found = _backward(cotangent, x, weight, ctx.geometry, wanted)
        return (*found, None)


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        cotangent: Tensor,
        x: Tensor,
        weight: Tensor,
        geometry: Any,
        wanted: Any,
        parts: list[Tensor] | None,
    ) -> Any:
        ctx.save_for_backward(x, weight)
        ctx.set_materialize_grads(False)
        ctx.geometry, ctx.parts, ctx.shape = geometry, parts, cotangent.shape
        if not bool(cotangent.any()):  # only the graph is wanted
            shapes = (x.shape, weight.shape, weight.shape[:1])
            pairs = zip(shapes, wanted, strict=True)
            return tuple(cotangent.new_zeros(shape) if own else None for shape, own in pairs)
        return _backward(cotangent, x, weight, geometry, wanted)

    @staticmethod
    def backward(ctx: Any, *pushed: Tensor | None) -> Any:
        x, weight = ctx.saved_tensors
        along_x, along_weight, along_bias = pushed
        total = None
        if along_x is not None:
            total = _convolution(along_x, weight, None, ctx.geometry)
        elif along_weight is not None and ctx.parts is not None:
            parts = _kept(ctx.parts, x, weight, ctx.geometry)
            total = _filter(parts, along_weight, along_bias).reshape(ctx.shape)
            return total, *[None] * 5
        if along_weight is not None:
            part = _convolution(x, along_weight, along_bias, ctx.geometry)
            total = part if total is None else total + part
        elif along_bias is not None:
            part = along_bias.reshape(-1, *([1] * (x.ndim - 2)))
            if total is None:
                total = part.expand(_convolution(x, weight, None, ctx.geometry).shape)
            else:
                total = total + part
        return total, *[None] * 5
