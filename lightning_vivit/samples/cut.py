"""Cut samples out of batches, and join batches again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import Any

from torch import Tensor

from lightning_vivit.errors import OptionError, ProblemError
from lightning_vivit.samples.batch import checksum, describe, map_parts, parts
from lightning_vivit.samples.size import Reading, read
from lightning_vivit.samples.units import kind_of, outline, rough, sizes_in, units


def cut(
    batch: Any, start: int, stop: int, reading: Reading | None = None, rows: bool = False
) -> Any:
    """Samples start..stop-1 of a batch; what has no row or entry for each sample stays.

    Args:
        batch: Whatever Lightning moves, see `samples.batch`; left as it is.
        start: The first sample.
        stop: One after the last sample.
        reading: What has one; None for the batch's own.
        rows: Whether a tensor may have T rows for each sample, those of a sample together.

    Raises:
        ProblemError: A container that cannot be copied.
    """
    reading = read(batch) if reading is None else reading
    kind = kind_of(batch)
    if reading.holds(batch):
        return batch[start:stop] if kind is None else kind.cut(batch, slice(start, stop))
    if rows and isinstance(batch, Tensor) and batch.ndim and batch.shape[0] % reading.count == 0:
        each = batch.shape[0] // reading.count
        return batch[start * each : stop * each]
    if kind is not None:
        return batch
    return map_parts(lambda part: cut(part, start, stop, reading, rows), batch)


def limit(batch: Any, max_samples: int | None) -> Any:
    """The first samples of a batch.

    Args:
        batch: Whatever Lightning moves, see `samples.batch`.
        max_samples: How many; None for all.

    Raises:
        OptionError: The shapes do not tell the samples from the positions of sequences.
        ProblemError: A container that cannot be copied.
    """
    reading = read(batch)
    if max_samples is None or reading.count <= max_samples:
        return batch
    if _may_be_sequence_first(batch, reading):
        raise OptionError(
            f"The samples of the batch ({describe(batch)}) may be on the first axis or, sequence "
            f"first, on the second, so max_samples={max_samples} cannot be applied. Use "
            "max_samples=None, or pass a smaller batch as probe."
        )
    return cut(batch, 0, max_samples, reading)


def _may_be_sequence_first(batch: Any, reading: Reading) -> bool:
    """Whether a tensor [N, n, ...] meets as many tensors [n, ...] as [N, ...]."""
    found = units(batch, reading.holds)
    shapes = [unit.shape for unit in found if isinstance(unit, Tensor) and unit.ndim > 0]
    counts, size = Counter(shape[0] for shape in shapes), reading.count
    second = {shape[1] for shape in shapes if shape[0] == size and len(shape) > 1} - {1, size}
    return any(counts[other] == counts[size] for other in second)


def join(batches: Sequence[Any], like: Any = None) -> Any:
    """The samples of batches of one form, one after the other.

    Args:
        batches: At least one.
        like: Tells the devices and what has no row or entry for each sample; None for the first.

    Raises:
        ProblemError: The batches do not fit together.
    """
    like = batches[0] if like is None else like
    readings = [read(batch) for batch in batches]
    if len(batches) == 1 or not all(reading.count for reading in readings):
        return like
    return _join(like, batches, readings)


def _join(like: Any, values: Sequence[Any], readings: Sequence[Reading]) -> Any:
    kind = kind_of(like)
    if all(reading.holds(value) for reading, value in zip(readings, values, strict=True)):
        return type(like)(chain(*values)) if kind is None else kind.join(like, values)
    if kind is not None or not sizes_in(like):
        return like
    if any(parts(value).keys() != parts(like).keys() for value in values):
        raise ProblemError(
            f"Batches with other parts cannot be joined: {' and '.join(map(describe, values))}."
        )
    return map_parts(lambda part, *each: _join(part, each, readings), like, *values)


def form(batch: Any) -> tuple[Any, ...]:
    """What must agree for batches to be joined: the structure, and all that stays in a cut."""
    reading = read(batch)

    def of_one(value: Any) -> Any:
        if not reading.holds(value):
            return checksum(value)
        return (*rough(value), getattr(value, "shape", ())[1:])

    return outline(batch, of_one, reading.holds)
