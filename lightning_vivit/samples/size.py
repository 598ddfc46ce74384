"""How many samples a batch has, and what in it has a row or an entry for each of them.

Every tensor with an axis votes for its leading size, a packed sequence and a batch of graphs for
what it holds, a list of samples for its length. The size that most vote for wins, the first one on
ties. Sizes of 1 broadcast: 1 wins only if the first tensor and most others have it, or all. Numpy
arrays and strings follow, and do not vote.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lightning_vivit.errors import ProblemError
from lightning_vivit.samples.batch import parts
from lightning_vivit.samples.units import are_alike, kind_of, numbers_in, sizes_in, units


@dataclass(frozen=True)
class Reading:
    """How a batch is read.

    Attributes:
        count: Number of samples N; 0 if no tensor has an axis for them.
        listed: Whether lists of N alike entries that hold tensors have one for each sample.
    """

    count: int
    listed: bool = False

    def holds(self, value: Any) -> bool:
        """Whether a part of the batch has a row, or an entry, for each sample.

        Lists and tuples of N entries without tensors have one for each (names, lengths).
        """
        kind = kind_of(value)
        if kind is not None:
            return kind.size(value) == self.count
        if type(value) not in (list, tuple) or len(value) != self.count:
            return False
        return not sizes_in(value) or (self.listed and (self.count == 1 or are_alike(value)))


def read(batch: Any) -> Reading:
    """The reading that explains most of a batch.

    Args:
        batch: Whatever Lightning moves, see `samples.batch`.
    """
    plain = _votes(batch, Reading(0))
    found = [Reading(_most_frequent(plain))]
    if lists := list(_lists(batch)):
        outside = _votes(batch, Reading(0), are_alike)
        lengths = {len(each) for each in lists if not _is_pair(each) or len(each) in outside}
        found += [Reading(length, True) for length in sorted(lengths, reverse=True)]
    return max(found, key=lambda each: _votes(batch, each).count(each.count))


def batch_size(batch: Any) -> int:
    """Number of samples.

    Args:
        batch: Whatever Lightning moves, see `samples.batch`.

    Raises:
        ProblemError: No tensor with a batch axis, or an empty batch.
    """
    leading_sizes(batch)
    return read(batch).count


def leading_sizes(batch: Any) -> tuple[int, ...]:
    """What the tensors of a batch vote for, in their order.

    Args:
        batch: Whatever Lightning moves, see `samples.batch`.

    Returns:
        At least one size.

    Raises:
        ProblemError: No tensor with a batch axis, or an empty batch.
    """
    sizes = _votes(batch, read(batch))
    if not sizes:
        raise ProblemError(
            f"The batch is a {type(batch).__name__} without any tensor that has a batch axis. "
            "Supported: tensors in (nested) sequences, mappings, dataclasses and objects with a "
            "method `to`, samples on the first axis. Let the collate function return tensors, or "
            "give an explicit Problem(model, loss, inputs, targets)."
        )
    if 0 in sizes:
        raise ProblemError(
            "The batch is empty (a tensor has leading size 0). At least one sample is needed: "
            "check the data loader or the sample limit."
        )
    return tuple(sizes)


def check_rows(batch: Any, rows: int) -> None:
    """Refuse a batch whose samples may be others than its tensors' first axes say.

    Args:
        batch: What a training step got.
        rows: Leading size of the outputs.

    Raises:
        ProblemError: A list of tensors, or the batches of several loaders, would explain the rows
            of the outputs in another way.
    """
    found = read(batch)
    if rows == found.count:
        return
    sizes = {size for size in _votes(batch, Reading(0)) if size > 1}
    several = len(sizes) > 1 and rows not in sizes and rows == sum(sizes)
    listed = found.listed and rows in sizes
    if several or listed or any(len(each) == rows for each in _lists(batch)):
        raise ProblemError(
            f"The outputs have {rows} rows. Most tensors of the batch ({type(batch).__name__}) say "
            f"{found.count} samples, its lists or all of its parts together say others, so which "
            "rows belong to which sample cannot be told. Let the collate function stack the "
            "samples, with the samples on the first axis of every tensor, or give an explicit "
            "Problem(model, loss, inputs, targets)."
        )


def _most_frequent(votes: Sequence[int]) -> int:
    """The size that most vote for; 0 without any."""
    counts = Counter(votes)
    larger = [size for size in votes if size != 1]
    single = votes[:1] == [1] and counts[1] > max(map(counts.__getitem__, larger), default=0)
    chosen = votes if single else larger or votes
    return next((size for size, _ in Counter(chosen).most_common(1)), 0)


def _votes(
    batch: Any, reading: Reading, left_out: Callable[[Any], bool] | None = None
) -> list[int]:
    """The votes of a batch under a reading, without those of certain lists."""
    votes, names = [], 0
    for unit in units(batch, left_out or (reading.holds if reading.count else lambda _: False)):
        kind = kind_of(unit)
        if kind is not None:
            size = None if isinstance(unit, np.ndarray) else kind.size(unit)
            votes += [] if size is None else [size]
        elif left_out is None and (tensors := len(sizes_in(unit))):
            votes += [reading.count] * (tensors + numbers_in(unit))
        else:
            names += 1
    return votes + [reading.count] * (names if reading.listed else 0)


def _lists(batch: Any) -> Iterator[Any]:
    """All lists and tuples whose entries may be the samples, the outer ones first."""
    if are_alike(batch):
        yield batch
    for part in {} if kind_of(batch) else parts(batch).values():
        yield from _lists(part)


def _is_pair(value: Any) -> bool:
    """Whether a list is two tensors with axes, such as inputs and targets, and no more."""
    return len(value) == 2 and kind_of(value[0]) is not None and None not in sizes_in(value)
