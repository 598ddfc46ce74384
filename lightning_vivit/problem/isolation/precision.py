"""The numbers that a replay computes with: float32, or more, whatever the run uses."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from lightning_vivit.problem.isolation.numerics import default_dtype
from lightning_vivit.samples.batch import map_leaves

LOW = (torch.float16, torch.bfloat16)
_Module = TypeVar("_Module", bound=nn.Module)


def replay_dtype(module: nn.Module, chosen: torch.dtype | None) -> torch.dtype | None:
    """What a module has to be converted to before it is evaluated.

    Args:
        module: The user's module.
        chosen: What the user wants; None for float32 in place of less.

    Returns:
        The dtype, or None if the module can stay as it is.
    """
    dtypes = {parameter.dtype for parameter in module.parameters()}
    floating = {dtype for dtype in dtypes if dtype.is_floating_point}
    if chosen is None:
        return torch.float32 if floating.intersection(LOW) else None
    return chosen if floating - {chosen} else None


def converted_copy(
    module: _Module, dtype: torch.dtype | None, memo: dict[int, Any] | None = None
) -> _Module:
    """A deep copy whose floating point parameters and buffers have a dtype.

    Args:
        module: The module; left as it is.
        dtype: float32 keeps what has more already; None converts nothing.
        memo: What the copy shares with the original: id -> object.

    Returns:
        The copy.
    """
    made = copy.deepcopy(module, dict(memo or {}))
    if dtype is None:
        return made
    made._apply(lambda tensor: convert(tensor, dtype))
    if getattr(made, "_dtype", None) in (*LOW, torch.float32, torch.float64):
        made._dtype = dtype  # type: ignore[assignment]  # what LightningModule.dtype says
    return made


def convert(value: Any, dtype: torch.dtype) -> Any:
    """A tensor or numpy array in a dtype if it has fewer bits; integers stay."""
    if isinstance(value, np.ndarray):
        few = value.dtype.kind == "f" and value.dtype.itemsize < dtype.itemsize
        return value.astype(f"f{dtype.itemsize}") if few else value
    wanted = isinstance(value, Tensor) and value.is_floating_point()
    if not wanted or value.dtype.itemsize > dtype.itemsize:
        return value
    return value.to(dtype)


def convert_batch(batch: Any, dtype: torch.dtype | None) -> Any:
    """A batch with its floating point tensors and arrays in a dtype, inference tensors cloned.

    Args:
        batch: Whatever Lightning moves.
        dtype: None leaves the dtypes.

    Returns:
        A batch whose tensors may enter a graph.
    """

    def plain(value: Any) -> Any:
        value = value.clone() if isinstance(value, Tensor) and value.is_inference() else value
        return value if dtype is None else convert(value, dtype)

    return map_leaves(plain, batch)


@contextmanager
def default_dtype_of(module: nn.Module, active: bool) -> Iterator[None]:
    """Make float64 the default dtype for a float64 module, as Lightning's 64-true does.

    Args:
        module: Its parameters tell.
        active: Whether to do anything.
    """
    double = any(parameter.dtype == torch.float64 for parameter in module.parameters())
    wanted = torch.float64 if double else torch.float32
    with default_dtype(wanted if active else torch.get_default_dtype()):
        yield
