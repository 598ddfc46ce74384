"""Every structure of a batch: the walk, the size, cutting, joining, copies, checksums."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from lightning_vivit.samples.batch import (
    checksum,
    clone,
    describe,
    leaves_in,
    map_leaves,
    tensors_in,
)
from lightning_vivit.samples.cut import cut, form, join, limit
from lightning_vivit.samples.size import batch_size, leading_sizes, read
from samples.structures import STRUCTURES, Structure, inputs_of, labels_of

ALL = list(range(9))


@pytest.fixture(params=STRUCTURES.values(), ids=STRUCTURES.keys())
def structure(request: pytest.FixtureRequest) -> Structure:
    return request.param


def check(structure: Structure, batch: Any, samples: list[int]) -> None:
    """A batch is of the structure's type and has these samples in all of its parts."""
    expected = structure.make(samples)
    assert type(batch) is type(expected)
    assert checksum(batch) == checksum(expected)
    inputs, labels = structure.read(batch)
    torch.testing.assert_close(inputs, inputs_of(samples))
    assert torch.equal(labels, labels_of(samples))


def test_size(structure: Structure) -> None:
    for count in (3, 8, 9):
        batch = structure.make(ALL[:count])
        assert batch_size(batch) == read(batch).count == count
        assert count in leading_sizes(batch)


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (0, 4), (3, 8), (8, 9), (0, 9)])
def test_cut(structure: Structure, start: int, stop: int) -> None:
    batch = structure.make(ALL)
    check(structure, cut(batch, start, stop), ALL[start:stop])
    check(structure, batch, ALL)  # itself it is as before


def test_cut_parts_join_to_the_whole(structure: Structure) -> None:
    batch = structure.make(ALL)
    parts = [cut(batch, start, start + 3) for start in (0, 3, 6)]
    check(structure, join(parts), ALL)
    check(structure, join([cut(batch, 0, 5), cut(batch, 5, 9)]), ALL)
    check(structure, parts[0], ALL[:3])


def test_limit(structure: Structure) -> None:
    batch = structure.make(ALL)
    check(structure, limit(batch, 8), ALL[:8])
    assert limit(batch, 9) is batch and limit(batch, None) is batch
    check(structure, batch, ALL)


def test_clones_are_equal_and_own_their_tensors(structure: Structure) -> None:
    batch = structure.make(ALL)
    copied = clone(batch)
    check(structure, copied, ALL)
    mine = {tensor.data_ptr() for tensor in tensors_in(batch)}
    assert mine.isdisjoint(tensor.data_ptr() for tensor in tensors_in(copied))
    for tensor in tensors_in(copied):
        tensor.zero_()
    move_data_to_device(copied, torch.device("meta"))  # some do so in place
    check(structure, batch, ALL)


def test_walk_sees_what_lightning_moves(structure: Structure) -> None:
    batch = structure.make(ALL)
    if not isinstance(batch, tuple):  # of a packed sequence the sizes stay where they are
        moved = move_data_to_device(clone(batch), torch.device("meta"))
        devices = {tensor.device.type for tensor in tensors_in(moved)}
        assert "meta" in devices and devices <= {"meta", "cpu"}
    assert len(list(tensors_in(batch))) == sum(isinstance(x, Tensor) for x in leaves_in(batch)) > 0


def test_map_changes_every_tensor_and_nothing_else(structure: Structure) -> None:
    batch = structure.make(ALL)
    doubled = map_leaves(
        lambda x: 2 * x if isinstance(x, Tensor) and x.is_floating_point() else x, batch
    )
    inputs, labels = structure.read(doubled)
    factor = 4 if "scale" in getattr(batch, "keys", list)() else 2
    if factor == 4:
        inputs = inputs / 2  # the mask, too
    torch.testing.assert_close(inputs, factor * inputs_of(ALL))
    assert torch.equal(labels, labels_of(ALL))
    check(structure, batch, ALL)


def test_checksum_sees_every_tensor(structure: Structure) -> None:
    batch = structure.make(ALL)
    before, count = checksum(batch), len(list(tensors_in(batch)))
    assert checksum(structure.make(ALL)) == before != checksum(structure.make(ALL[::-1]))
    for index in range(count):
        copied = clone(batch)
        list(tensors_in(copied))[index].flatten()[-1:].add_(1)
        assert checksum(copied) != before


def test_description_names_shapes(structure: Structure) -> None:
    shapes = [str(list(tensor.shape)) for tensor in tensors_in(structure.make(ALL))]
    assert describe(structure.make(ALL)).startswith(f"tensors of shape {shapes[0]}")


def test_forms_agree_for_other_samples(structure: Structure) -> None:
    assert form(structure.make(ALL[:6])) == form(structure.make(ALL[3:]))


def test_checksum_sees_shape_dtype_and_strings() -> None:
    zeros = torch.zeros(2, 3)
    others = [zeros.reshape(3, 2), zeros.int(), [zeros, "a"], [zeros, "b"], [zeros, 1]]
    others += [[zeros, np.zeros(2)], [zeros, np.ones(2)], [zeros, np.zeros((2, 1))]]
    marks = {checksum(other) for other in [zeros, *others]}
    assert len(marks) == 1 + len(others)
    assert checksum(zeros.to_sparse()) == checksum(zeros)
    assert checksum(zeros.bfloat16()) == checksum(zeros.bfloat16())


def test_clones_of_arrays_are_arrays_of_their_own() -> None:
    batch = [torch.ones(2), np.ones(2)]
    copied = clone(batch)
    copied[1][:] = 0
    assert batch[1].tolist() == [1, 1]
