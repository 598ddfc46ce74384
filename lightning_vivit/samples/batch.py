"""How many samples a batch has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from lightning_vivit.errors import ProblemError


def batch_size(batch: Any) -> int:
    """Number of samples: the most frequent leading size of the batch's tensors, the first on ties.

    A leading size of 1 counts only if there is no other: such a tensor broadcasts.

    Args:
        batch: Tensors in nested lists, tuples and dicts.

    Returns:
        The number of samples.

    Raises:
        ProblemError: No tensor with a batch axis, or an empty batch.
    """
    sizes = leading_sizes(batch)
    return Counter([size for size in sizes if size > 1] or sizes).most_common(1)[0][0]


def leading_sizes(batch: Any) -> tuple[int, ...]:
    """Leading sizes of the batch's tensors, in their order.

    Args:
        batch: Tensors in nested lists, tuples and dicts.

    Returns:
        At least one size.

    Raises:
        ProblemError: No tensor with a batch axis, or an empty batch.
    """
    sizes = tuple(tensor.shape[0] for tensor in tensors_in(batch) if tensor.ndim > 0)
    if not sizes:
        raise ProblemError(
            f"The batch is a {type(batch).__name__} without any tensor that has a batch axis. "
            "Supported: tensors in (nested) tuples, lists and dicts, samples on the first axis. "
            "Let the collate function return tensors, or give an explicit "
            "Problem(model, loss, inputs, targets)."
        )
    if 0 in sizes:
        raise ProblemError(
            "The batch is empty (a tensor has leading size 0). At least one sample is needed: "
            "check the data loader or the sample limit."
        )
    return sizes


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in nested lists, tuples and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
