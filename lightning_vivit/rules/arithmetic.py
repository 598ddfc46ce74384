"""Rule for elementwise operations of data and parameters with broadcasting."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_vivit.factors import Factor
from lightning_vivit.rules.broadcast import broadcasts_over_samples, reduce_columns
from lightning_vivit.rules.registry import Use, register_rule


@register_rule(
    torch.add,
    Tensor.add,
    Tensor.add_,
    Tensor.__add__,
    Tensor.__radd__,
    Tensor.__iadd__,
    torch.sub,
    Tensor.sub,
    Tensor.sub_,
    Tensor.__sub__,
    Tensor.__rsub__,
    Tensor.__isub__,
    torch.mul,
    Tensor.mul,
    Tensor.__mul__,
    Tensor.__rmul__,
    torch.div,
    Tensor.div,
    Tensor.__truediv__,
    Tensor.__rtruediv__,
    torch.pow,
    Tensor.pow,
    Tensor.__pow__,
    torch.maximum,
    torch.minimum,
    torch.where,
    torch.lerp,
    Tensor.lerp,
    torch.addcmul,
    Tensor.addcmul,
)
def elementwise(use: Use) -> list[tuple[Tensor, Factor]] | None:
    """Each parameter: columns times the operation's own derivative, summed where it broadcasts.

    The derivative comes from autograd on this one operation, with the parameter expanded to the
    output's shape, so that it is the derivative at every entry.
    """
    output = use.call.outputs[0]
    assert output is not None
    found: list[tuple[Tensor, Factor]] = []
    for tensor in {id(t): t for t in [*use.call.args, *use.call.kwargs.values()]}.values():
        if not use.wants(tensor):
            continue
        if not broadcasts_over_samples(use, tuple(tensor.shape)):
            return None
        slope = _slope(use, tensor, output.shape)
        if slope is None:
            return None
        products = use.columns if slope.ndim == 0 else use.columns * use.axis.split(slope)[:, None]
        if slope.ndim == 0 and slope.item() != 1.0:
            products = products * slope
        found.append((tensor, reduce_columns(use, products, tuple(tensor.shape), tensor)))
    return found


_SUMS = {torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__}
_IN_PLACE = {
    Tensor.add_: torch.add,
    Tensor.__iadd__: torch.add,
    Tensor.sub_: torch.sub,
    Tensor.__isub__: torch.sub,
}


def _slope(use: Use, tensor: Tensor, shape: torch.Size) -> Tensor | None:
    """D output / d parameter at every entry of the output, or a scalar 1."""
    call = use.call
    if call.function in _SUMS and not call.kwargs:
        others = [argument for argument in call.args if argument is not tensor]
        if len(others) == 1:
            return use.columns.new_ones(())
    in_place: dict[Any, Any] = _IN_PLACE
    function = in_place.get(call.function, call.function)
    with torch.enable_grad():
        leaf = tensor.detach().expand(shape).clone().requires_grad_()

        def swap(value: object) -> object:
            if value is tensor:
                return leaf
            return value.detach() if isinstance(value, Tensor) else value

        args = [swap(value) for value in call.args]
        kwargs = {name: swap(value) for name, value in call.kwargs.items()}
        result = function(*args, **kwargs)
        if result.shape != shape:
            return None
        (slope,) = torch.autograd.grad(result.sum(), leaf)
    return slope
