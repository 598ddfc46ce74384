"""What in a batch holds samples as one: arrays, packed sequences, graphs, lists of samples.

Each kind says how many samples it holds, and how these are cut out and joined. A further kind is
one more class in `KINDS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence, unpack_sequence

from lightning_vivit.errors import ProblemError
from lightning_vivit.samples.batch import parts, tensors_in


class Kind:
    """Tensors and numpy arrays: the samples are on the first axis."""

    def matches(self, value: Any) -> bool:
        """Whether a value is of this kind."""
        return isinstance(value, (Tensor, np.ndarray))

    def size(self, value: Any) -> int | None:
        """How many samples it holds; None if it has no axis for them."""
        return int(value.shape[0]) if value.ndim > 0 else None

    def cut(self, value: Any, where: slice) -> Any:
        """Some of the samples."""
        return value[where]

    def join(self, like: Any, values: Sequence[Any]) -> Any:
        """The samples of several values, on the device of `like`.

        Raises:
            ProblemError: They do not fit together.
        """
        if len({value.shape[1:] for value in values}) > 1:
            shapes = " and ".join(str(tuple(value.shape)) for value in values)
            raise ProblemError(
                f"Tensors of shape {shapes} cannot be joined: their samples have different shapes. "
                "Pad them to one length."
            )
        if isinstance(like, np.ndarray):
            return np.concatenate(values)
        return torch.cat([value.to(like.device) for value in values])


class _Packed(Kind):
    """Packed sequences of several lengths, in the order before they were sorted."""

    def matches(self, value: Any) -> bool:
        return isinstance(value, PackedSequence)

    def size(self, value: PackedSequence) -> int:
        return int(value.batch_sizes[0])

    def cut(self, value: PackedSequence, where: slice) -> Any:
        return pack_sequence(unpack_sequence(value)[where], value.sorted_indices is None)

    def join(self, like: PackedSequence, values: Sequence[Any]) -> Any:
        found = [each.to(like.data.device) for value in values for each in unpack_sequence(value)]
        return pack_sequence(found, enforce_sorted=False)


class _Graphs(Kind):
    """torch_geometric's Batch holds graphs; one graph is one sample, whatever its nodes are."""

    def matches(self, value: Any) -> bool:
        return hasattr(type(value), "num_nodes") and hasattr(type(value), "to")

    def size(self, value: Any) -> int:
        return int(getattr(value, "num_graphs", 1))

    def cut(self, value: Any, where: slice) -> Any:
        if not hasattr(value, "to_data_list"):
            return value  # one graph
        return type(value).from_data_list(value.to_data_list()[where])

    def join(self, like: Any, values: Sequence[Any]) -> Any:
        if not hasattr(like, "to_data_list"):
            raise ProblemError(
                f"A {type(like).__name__} is one graph, and several cannot be joined. Let the "
                "loader give batches of graphs (torch_geometric.loader.DataLoader)."
            )
        graphs = [graph for value in values for graph in value.to_data_list()]
        return type(like).from_data_list(graphs).to(next(tensors_in(like)).device)


class _Sized(Kind):
    """What knows its batch size and is indexed by samples itself, such as a TensorDict."""

    def matches(self, value: Any) -> bool:
        return isinstance(getattr(type(value), "batch_size", None), property) and isinstance(
            value.batch_size, torch.Size
        )

    def size(self, value: Any) -> int | None:
        return value.batch_size[0] if value.batch_size else None

    def join(self, like: Any, values: Sequence[Any]) -> Any:
        return torch.cat(list(values))


KINDS = (Kind(), _Packed(), _Graphs(), _Sized())


def kind_of(value: Any) -> Kind | None:
    """The kind of a value that holds samples as one; None for containers and plain values."""
    return next((kind for kind in KINDS if kind.matches(value)), None)


def units(value: Any, as_one: Callable[[Any], bool] = lambda _: False) -> Iterator[Any]:
    """Everything in a batch that holds samples as one, in order.

    Args:
        value: The batch.
        as_one: Which lists are taken as one.
    """
    if kind_of(value) is not None or as_one(value):
        yield value
    else:
        for part in parts(value).values():
            yield from units(part, as_one)


def sizes_in(value: Any) -> list[int | None]:
    """How many samples each unit holds; None where it has no axis for them."""
    return [kind.size(unit) for unit in units(value) if (kind := kind_of(unit))]


def numbers_in(value: Any) -> int:
    """How many numbers and strings the entries of a list hold, beside their tensors."""
    held = (part for entry in value for part in parts(entry).values())
    return sum(isinstance(part, (int, float, str)) for part in held)


def are_alike(value: Any) -> bool:
    """Whether a list or tuple has at least two entries, all with tensors in one structure."""
    if type(value) not in (list, tuple) or len(value) < 2 or not sizes_in(value[0]):
        return False
    first = outline(value[0], rough)
    return all(outline(entry, rough) == first for entry in value[1:])


def outline(
    value: Any, of_one: Callable[[Any], Any], as_one: Callable[[Any], bool] = lambda _: False
) -> tuple[Any, ...]:
    """The structure of a batch, to compare it with others.

    Args:
        value: The batch.
        of_one: What must agree of a unit or a plain value.
        as_one: Which lists are taken as one.
    """
    held = {} if kind_of(value) or as_one(value) else parts(value)
    inside = tuple((name, outline(part, of_one, as_one)) for name, part in held.items())
    return (type(value), inside if held else of_one(value))


def rough(value: Any) -> tuple[Any, ...]:
    """What entries of a list have in common if they are samples: axes and dtype, not shapes."""
    return (value.ndim, value.dtype) if isinstance(value, (Tensor, np.ndarray)) else ()
