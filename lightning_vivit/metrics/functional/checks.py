"""Checks of the inputs, shared by all statistics: finite real numbers of a known shape."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_vivit.errors import OptionError
from lightning_vivit.machine.numbers import all_finite, double


def refusal(got: str, supported: str, do: str) -> OptionError:
    """The error for an input that has no meaning here.

    Args:
        got: What was passed.
        supported: What has a meaning.
        do: What to change.

    Returns:
        The error, to be raised by the caller.
    """
    return OptionError(f"Got {got}. Supported: {supported}. To do: {do}.")


def floats(
    name: str, value: Tensor, shape: str, ndims: tuple[int, ...], finite: bool = True
) -> Tensor:
    """Check that `value` is a finite floating-point tensor with entries.

    Args:
        name: What the tensor is called in messages.
        value: The tensor.
        shape: The supported shapes, in words.
        ndims: The supported numbers of axes.
        finite: False leaves out the check that reads the entries.

    Returns:
        The same tensor.

    Raises:
        OptionError: If it is anything else.
    """
    if not isinstance(value, Tensor):
        raise refusal(
            f"{name} of type {type(value).__name__}",
            f"a floating-point tensor of shape {shape}",
            "convert it with torch.as_tensor",
        )
    if not value.is_floating_point():
        raise refusal(
            f"{name} of dtype {value.dtype}",
            f"a real floating-point tensor of shape {shape}",
            "convert it with .to(torch.float64)",
        )
    if value.ndim not in ndims or value.numel() == 0:
        raise refusal(
            f"{name} of shape {list(value.shape)}",
            f"the shape {shape}, with at least one entry",
            "pass the tensor in this shape",
        )
    if finite and not all_finite(value):
        count = int((~torch.isfinite(value)).sum())
        raise refusal(
            f"{name} with {count} of {value.numel()} entries infinite or NaN",
            "finite values",
            "check that the loss and the parameters are finite at this step",
        )
    return value


def number(
    name: str,
    value: float | Tensor,
    lowest: float = -math.inf,
    below: float = math.inf,
) -> Tensor:
    """Check that `value` is one finite number in [lowest, below).

    Args:
        name: What the number is called in messages.
        value: A Python number or a tensor with a single entry.
        lowest: Smallest supported value.
        below: Smallest value that is too large.

    Returns:
        The number as a tensor of float64 without axes.

    Raises:
        OptionError: If it is anything else.
    """
    bounds = "a finite number"
    if lowest > -math.inf:
        bounds += f" not below {lowest:g}"
    if below < math.inf:
        bounds += f" and below {below:g}"
    if isinstance(value, Tensor):
        if value.numel() != 1 or value.is_complex():
            raise refusal(
                f"{name} as a tensor of shape {list(value.shape)} and dtype {value.dtype}",
                bounds,
                "pass a float or a real tensor with one entry",
            )
        scalar = double(value).reshape(())
    elif isinstance(value, (int, float)):
        scalar = torch.tensor(float(value), dtype=torch.float64)
    else:
        raise refusal(f"{name} of type {type(value).__name__}", bounds, "pass a float")
    found = float(scalar.detach())
    if not (math.isfinite(found) and lowest <= found < below):
        raise refusal(f"{name} = {found:g}", bounds, f"check where {name} comes from")
    return scalar
