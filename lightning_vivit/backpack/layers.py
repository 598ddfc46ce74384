"""Factors of BackPACK layers: the layer as a functional call, handed to the same rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_vivit.errors import ProblemError
from lightning_vivit.factors import Factor
from lightning_vivit.problem.tape.recorder import Call
from lightning_vivit.rules import Use, find_rule
from lightning_vivit.samples.axis import SampleAxis

_CONVOLUTIONS: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Conv1d: F.conv1d,
    nn.Conv2d: F.conv2d,
    nn.Conv3d: F.conv3d,
}
_TRANSPOSED: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.ConvTranspose1d: F.conv_transpose1d,
    nn.ConvTranspose2d: F.conv_transpose2d,
    nn.ConvTranspose3d: F.conv_transpose3d,
}


def layer_call(layer: nn.Module, inputs: Tensor) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The functional call that a layer makes.

    Args:
        layer: A layer with parameters.
        inputs: Its input.

    Returns:
        The function and its positional arguments.

    Raises:
        ProblemError: The layer has no functional form here.
    """
    if isinstance(layer, nn.Linear):
        return F.linear, (inputs, layer.weight, layer.bias)
    for kind, function in _CONVOLUTIONS.items():
        if isinstance(layer, kind) and layer.padding_mode == "zeros":
            options = (layer.stride, layer.padding, layer.dilation, layer.groups)
            return function, (inputs, layer.weight, layer.bias, *options)
    for kind, function in _TRANSPOSED.items():
        if isinstance(layer, kind):
            sizes = (layer.stride, layer.padding, layer.output_padding)
            rest = (layer.groups, layer.dilation)
            return function, (inputs, layer.weight, layer.bias, *sizes, *rest)
    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
        statistics = (layer.running_mean, layer.running_var)
        return F.batch_norm, (
            inputs,
            *statistics,
            layer.weight,
            layer.bias,
            False,
            0.0,
            layer.eps,
        )
    if isinstance(layer, nn.Embedding) and not layer.scale_grad_by_freq:
        return F.embedding, (inputs, layer.weight, layer.padding_idx)
    raise ProblemError(
        f"No factor for {type(layer).__name__}. Supported: Linear, convolutions and transposed "
        "convolutions (zero padding), BatchNorm in eval mode, Embedding "
        "(scale_grad_by_freq=False). Use the autograd functions of lightning_vivit for others."
    )


def layer_factor(
    layer: nn.Module,
    name: str,
    columns: Tensor,
    subsampling: Sequence[int] | None = None,
    samples_seen: bool = True,
) -> Factor:
    """Factor of one parameter of a layer under BackPACK.

    Args:
        layer: An extended layer after its forward pass (its input is in ``input0``).
        name: Name of the parameter in the layer.
        columns: [C, N, *output shape], what BackPACK propagates to the layer's output.
        subsampling: Indices of the samples that the columns belong to; None for all.
        samples_seen: Whether the columns are restricted to `subsampling` already.

    Returns:
        The factor, N samples with C columns.
    """
    inputs: Tensor = vars(layer)["input0"]
    if subsampling is not None:
        index = list(subsampling)
        inputs = inputs[index]
        if not samples_seen:
            columns = columns[:, index]
    function, arguments = layer_call(layer, inputs)
    rule = find_rule(function)
    parameter = getattr(layer, name)
    axis = SampleAxis(0, columns.shape[1])
    call = Call(function, arguments, {}, (), "", True)
    use = Use(call, axis, columns.transpose(0, 1).unsqueeze(2), frozenset({id(parameter)}))
    found = None if rule is None else rule(use)
    if not found:
        raise ProblemError(
            f"The rule of {type(layer).__name__} does not cover this layer. Use the autograd "
            "functions of lightning_vivit."
        )
    return found[0][1]
