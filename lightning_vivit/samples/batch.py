"""The walk over a batch: its parts, its tensors, copies of it, a line and a checksum about it.

A batch may be nested of whatever Lightning moves: sequences (named tuples, too), mappings,
dataclasses and objects with a method `to`. Nothing here changes a batch or an object in it.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_vivit.errors import ProblemError

_PLAIN = (str, bytes, bytearray, range, int, float, complex, type(None), type)
_LEAVES = (Tensor, np.ndarray, nn.Module, *_PLAIN)
_COMMON = frozenset((type(None), bool, int, float, str, slice, torch.dtype, torch.device))


def parts(value: Any) -> Mapping[Any, Any]:
    """What a container holds, by index, key or attribute; nothing for a leaf."""
    if isinstance(value, _LEAVES):
        return {}
    if isinstance(value, Sequence):
        return dict(enumerate(value))
    if isinstance(value, Mapping):
        return dict(value.items())
    if is_dataclass(value) or callable(getattr(type(value), "to", None)):
        slots = (getattr(kind, "__slots__", ()) for kind in type(value).__mro__)
        names = [name for each in slots for name in ([each] if isinstance(each, str) else each)]
        held = {name: getattr(value, name) for name in names if hasattr(value, name)}
        held.update(getattr(value, "__dict__", {}))
        return {name: part for name, part in held.items() if not name.startswith("__")}
    return {}


def map_parts(function: Callable[..., Any], value: Any, *others: Any) -> Any:
    """A copy of a container with other parts; a leaf as it is.

    Args:
        function: Called with a part, and those in the same place of `others`.
        value: The container, left as it is.
        others: Containers with the same parts.

    Raises:
        ProblemError: A container that cannot be copied.
    """
    if not parts(value):
        return value
    made = isinstance(value, Sequence) or (
        isinstance(value, Mapping) and not isinstance(value, MutableMapping)
    )
    with _copying(value):  # first, for parts that know the object that holds them
        copied = value if made else copy.copy(value)
    rest = [parts(other) for other in others]
    found = {
        name: function(part, *(each[name] for each in rest)) for name, part in parts(copied).items()
    }
    with _copying(value):
        if made:
            make = getattr(type(value), "_make", type(value))  # of a named tuple
            return make(list(found.values()) if isinstance(value, Sequence) else found)
        for name, part in found.items():
            if isinstance(value, Mapping):
                copied[name] = part
            else:
                object.__setattr__(copied, name, part)
    return copied


@contextmanager
def _copying(value: Any) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise ProblemError(
            f"The {type(value).__name__} in the batch cannot be copied with other tensors "
            f"({type(error).__name__}: {error}). Supported: sequences, mappings, dataclasses and "
            "objects with a method `to`, if copy.copy copies them and their parts can be set. Let "
            "the collate function return one of these."
        ) from error


def map_leaves(function: Callable[[Any], Any], value: Any) -> Any:
    """A batch in new containers, with a function applied to everything that is no container."""
    if parts(value):
        return map_parts(lambda part: map_leaves(function, part), value)
    return function(value)


def leaves_in(value: Any) -> Iterator[Any]:
    """Everything in a batch that is no container, in order."""
    if held := parts(value):
        for part in held.values():
            yield from leaves_in(part)
    else:
        yield value


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in a batch, or in the arguments of an operation, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from tensors_in(part)
    elif type(value) not in _COMMON:  # arguments of an operation, mostly
        for part in value.values() if type(value) is dict else parts(value).values():
            yield from tensors_in(part)


def clone(batch: Any) -> Any:
    """The batch in new containers with new tensors: whoever changes it does not change the run."""

    def cloned(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return leaf.detach().clone()
        return leaf.copy() if isinstance(leaf, np.ndarray) else leaf

    return map_leaves(cloned, batch)


def describe(batch: Any) -> str:
    """The shapes of the batch, for messages."""
    shapes = [f"{list(tensor.shape)}" for tensor in tensors_in(batch)]
    if not shapes:
        return f"a {type(batch).__name__} without tensors"
    return f"tensors of shape {', '.join(shapes[:6])}{', ...' if len(shapes) > 6 else ''}"


def checksum(batch: Any) -> int:
    """CRC-32 of all shapes, dtypes, numbers and strings: equal for batches with equal contents."""
    found = 0
    for leaf in leaves_in(batch):
        if isinstance(leaf, Tensor):
            plain = leaf.detach().cpu()
            plain = (plain if plain.layout is torch.strided else plain.to_dense()).reshape(-1)
            found = zlib.crc32(f"{tuple(leaf.shape)} {leaf.dtype}".encode(), found)
            found = zlib.crc32(plain.contiguous().view(torch.uint8).numpy().tobytes(), found)
        elif isinstance(leaf, np.ndarray) and not leaf.dtype.hasobject:
            found = zlib.crc32(f"{leaf.shape} {leaf.dtype}".encode() + leaf.tobytes(), found)
        elif isinstance(leaf, _PLAIN):
            found = zlib.crc32(repr(leaf).encode(), found)
    return found
