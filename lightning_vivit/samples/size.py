"""How many samples a batch has.

Every tensor with an axis votes for its leading size, a packed sequence, a batch of graphs and a
list of samples for what it holds. The size that most vote for wins, the first one on ties. Sizes
of 1 broadcast: 1 wins only if the first tensor and most others have it, or all. Numpy arrays and
strings follow, and do not vote.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from lightning_vivit.errors import ProblemError
from lightning_vivit.samples.batch import describe, leaves_in, parts
from lightning_vivit.samples.units import are_alike, has_samples, kind_of, sizes_in, units


def batch_size(batch: Any) -> int:
    """Number of samples.

    Args:
        batch: Whatever Lightning moves, see `samples.batch`.

    Raises:
        ProblemError: No tensor with a batch axis, or an empty batch.
    """
    leading_sizes(batch)
    return find_size(batch) or 1


def find_size(batch: Any) -> int | None:
    """Number of samples; None if there is no tensor with a batch axis."""
    return _read(batch)[0]


def leading_sizes(batch: Any) -> tuple[int, ...]:
    """What the tensors of a batch vote for, in their order.

    Args:
        batch: Whatever Lightning moves, see `samples.batch`.

    Returns:
        At least one size.

    Raises:
        ProblemError: No tensor with a batch axis, or an empty batch.
    """
    sizes = _read(batch)[1]
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
    count = batch_size(batch)
    if rows == count:
        return
    lists = list(_lists(batch))
    sizes = {size for size in _tally(batch, None) if size > 1}
    several = len(sizes) > 1 and rows not in sizes and rows == sum(sizes)
    listed = rows in sizes and any(has_samples(each, count) for each in lists)
    if several or listed or any(len(each) == rows for each in lists):
        raise ProblemError(
            f"The outputs have {rows} rows, and the batch (a {type(batch).__name__} with "
            f"{describe(batch)}) has {count} samples by what most of its tensors say, but others "
            "by its lists or by all of its parts together: which rows belong to which sample "
            "cannot be told. Let the collate function stack the samples, with the samples on the "
            "first axis of every tensor, or give an explicit Problem(model, loss, inputs, targets)."
        )


def _read(batch: Any) -> tuple[int | None, list[int]]:
    """The number of samples that explains most of a batch, and the votes."""
    plain = _tally(batch, None)
    lists = list(_lists(batch))
    found = _most_frequent(plain)
    if not lists:
        return next(iter(found), None), plain
    outside = [kind.size(unit) for unit in units(batch, are_alike) if (kind := kind_of(unit))]
    found += [size for size in outside if size is not None and size > 1]
    lengths = {len(each) for each in lists if len(each) > 2 or not kind_of(each[0])}
    tallies = {size: _tally(batch, size) for size in [*found, *sorted(lengths, reverse=True)]}
    if not tallies:
        return None, plain
    count = max(tallies, key=lambda size: tallies[size].count(size))
    return count, tallies[count]


def _most_frequent(votes: Sequence[int]) -> list[int]:
    """The size that most vote for, if there is any."""
    counts = Counter(votes)
    larger = [size for size in votes if size != 1]
    single = votes[:1] == [1] and counts[1] > max(map(counts.__getitem__, larger), default=0)
    chosen = votes if single else larger or votes
    return [size for size, _ in Counter(chosen).most_common(1)]


def _tally(batch: Any, count: int | None) -> list[int]:
    """The votes, where lists with an entry for each of `count` samples are taken as one."""
    votes, names, listed = [], 0, False
    for unit in units(batch, lambda value: count is not None and has_samples(value, count)):
        kind = kind_of(unit)
        if kind is None and not sizes_in(unit):
            names += 1
        elif kind is None:
            votes += [count or 0] * len(list(leaves_in(unit)))
            listed = True
        elif not isinstance(unit, np.ndarray) and (size := kind.size(unit)) is not None:
            votes.append(size)
    return votes + [count or 0] * (names if listed else 0)


def _lists(batch: Any) -> Iterator[Any]:
    """All lists and tuples whose entries may be the samples, the outer ones first."""
    if are_alike(batch):
        yield batch
    for part in {} if kind_of(batch) else parts(batch).values():
        yield from _lists(part)
