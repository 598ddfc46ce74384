"""What one operation did, as a hashable value: equal values mean the same way of the samples.

Only operations on tensors that need a gradient matter: what Python or an integer tensor decides is
seen where it is applied to one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

# Operations that move rows to where an integer or boolean tensor says.
MOVES = frozenset(
    (
        "__getitem__",
        "__setitem__",
        "index_select",
        "index_add",
        "index_add_",
        "index_copy",
        "index_copy_",
        "index_fill",
        "index_fill_",
        "index_put",
        "index_put_",
        "index_reduce",
        "index_reduce_",
        "gather",
        "take",
        "take_along_dim",
        "put",
        "put_",
        "masked_select",
        "masked_scatter",
        "masked_scatter_",
        "scatter",
        "scatter_",
        "scatter_add",
        "scatter_add_",
        "scatter_reduce",
        "scatter_reduce_",
        "repeat_interleave",
        "_pack_padded_sequence",
        "_pad_packed_sequence",
        "lstm",
        "gru",
        "rnn_tanh",
        "rnn_relu",
        "segment_reduce",
        "embedding_bag",
    )
)


def moves(function: Callable[..., Any]) -> bool:
    """Whether an operation may bring rows into another order."""
    return getattr(function, "__name__", "") in MOVES


def summary(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Any, ...]:
    """Operation, shapes, plain options, and contents of indices.

    Args:
        function: The operation.
        args: Its arguments.
        kwargs: Its arguments by name.

    Returns:
        A hashable value.
    """
    contents = moves(function)
    return (function, _summary(args, contents), _summary(kwargs, contents))


def _summary(value: object, contents: bool) -> object:
    if isinstance(value, Tensor):
        if contents and not value.is_floating_point() and not value.is_complex():
            plain = value.detach()
            return (tuple(value.shape), plain.to("cpu", torch.int64).numpy().tobytes())
        return (tuple(value.shape), value.dtype)
    if isinstance(value, Mapping):
        return tuple((name, _summary(item, contents)) for name, item in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(_summary(item, contents) for item in value)
    if isinstance(value, slice):
        return (value.start, value.stop, value.step) if _plain(value) else "slice"
    return value if isinstance(value, (int, float, str, bool, type(None))) else type(value)


def _plain(value: slice) -> bool:
    parts = (value.start, value.stop, value.step)
    return all(part is None or isinstance(part, int) for part in parts)
