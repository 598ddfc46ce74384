"""The rule of the batch size, and what is refused because its samples cannot be told."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_vivit.errors import OptionError, ProblemError
from lightning_vivit.samples.cut import cut, join, limit
from lightning_vivit.samples.size import Reading, batch_size, check_rows, leading_sizes, read


def rows(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.zeros(shape) for shape in shapes]


def images(count: int, channels: int = 3) -> tuple[Tensor, ...]:
    return tuple(torch.zeros(count, channels, 8, 8))


@pytest.mark.parametrize(
    ("batch", "size"),
    [
        (rows((64, 5), (1,), (1, 5)), 64),
        (rows((1,), (64, 5), (1, 5), (64,)), 64),
        (rows((64, 5), (10, 5)), 64),  # the first on ties
        (rows((10, 5), (64, 5), (64,)), 64),
        (rows((1, 5), (1,)), 1),
        (rows((1, 5), (1,), (13,)), 1),  # one sample, and weights of classes
        ([*rows((), (7, 2), ()), 3, None, "text"], 7),
        (rows((64, 5), (64, 5)), 64),
        (rows((8, 16), (8, 16), (8, 16), (8, 16)), 8),  # token ids, mask, segments, labels
        ((rows((64, 5), (64, 5)), *rows((64,))), 64),  # two views
        ((rows((64, 5), (64, 5)), rows((64,), (64,))), 64),  # mixup's pairs
        (({"x": rows((8, 5)), "t": ["a"] * 8}, {"x": rows((8, 5)), "t": ["b"] * 8}), 8),
        ([(image, 3) for image in images(9)], 9),
        ([(image, torch.tensor(3)) for image in images(2)], 2),
        ((images(9), torch.zeros(9)), 9),
        ((images(9), (1,) * 9), 9),
        (
            (images(4), [{"boxes": torch.zeros(n, 4), "labels": torch.zeros(n)} for n in range(4)]),
            4,
        ),
        ([torch.zeros(n, 3) for n in (4, 7, 5, 9, 7)], 5),
        ([torch.zeros(n, 3) for n in (4, 7)], 4),  # inputs and a table, for all that is known
        ([(torch.zeros(n), torch.zeros(n + 1)) for n in (4, 7, 5, 9)], 4),
    ],
)
def test_size(batch: Any, size: int) -> None:
    assert batch_size(batch) == read(batch).count == size


@pytest.mark.parametrize("batch", ["text", ["a", 3], [torch.tensor(3.0)], {}, [], object()])
def test_no_size(batch: Any) -> None:
    assert read(batch).count == 0
    assert limit(batch, 1) is batch
    with pytest.raises(ProblemError, match="without any tensor that has a batch axis"):
        batch_size(batch)


def test_empty_batch() -> None:
    with pytest.raises(ProblemError, match="leading size 0"):
        leading_sizes(rows((0, 5)))


def test_limit_holds_beside_tensors_of_size_one() -> None:
    batch = {"x": torch.randn(64, 5), "scale": torch.ones(1), "mask": torch.ones(1, 5)}
    found = limit(batch, 8)
    assert torch.equal(found["x"], batch["x"][:8])
    assert torch.equal(found["scale"], batch["scale"]) and found["mask"].shape == (1, 5)
    assert limit({"x": torch.zeros(64, 1), "scale": torch.ones(1)}, 8)["x"].shape == (8, 1)


def test_what_has_no_entry_for_each_sample_stays() -> None:
    batch = {"x": torch.zeros(6, 2), "table": torch.zeros(7, 6), "classes": ("a", "b"), "size": 6}
    found = cut(batch, 1, 3)
    assert found["x"].shape == (2, 2) and found["table"] is batch["table"]
    assert found["classes"] == ("a", "b") and found["size"] == 6


@pytest.mark.parametrize(
    "shapes", [((9, 20, 4), (20,)), ((9, 20), (20,)), ((9, 20, 4), (9, 20), (20, 2), (20,))]
)
def test_limit_refuses_what_may_be_sequence_first(shapes: Any) -> None:
    with pytest.raises(OptionError, match=r"sequence\s+first.*max_samples=8"):
        limit(rows(*shapes), 8)


def test_targets_may_have_several_rows_for_each_sample() -> None:
    targets = {"y": torch.arange(12), "w": torch.arange(4), "c": torch.ones(5), "s": torch.ones(())}
    found = cut(targets, 1, 3, Reading(4), rows=True)
    assert found["y"].tolist() == [3, 4, 5, 6, 7, 8] and found["w"].tolist() == [1, 2]
    assert found["c"].shape == (5,) and found["s"].shape == ()


def test_batches_that_do_not_fit_are_not_joined() -> None:
    with pytest.raises(ProblemError, match="samples have different shapes"):
        join([rows((4, 3)), rows((2, 5))])
    with pytest.raises(ProblemError, match="other parts cannot be joined"):
        join([{"x": torch.zeros(4)}, {"y": torch.zeros(4)}])


class Handle:
    """Can be moved, not copied."""

    def __init__(self) -> None:
        self.x = torch.zeros(4)

    def to(self, device: Any) -> Handle:
        return self

    def __copy__(self) -> Handle:
        raise TypeError("there is one only")


def test_an_object_that_cannot_be_copied_is_named() -> None:
    with pytest.raises(ProblemError, match=r"The Handle in the batch.*there is one only.*collate"):
        cut({"a": Handle()}, 0, 2)


LOADERS = [(rows((4, 5), (4,))), (rows((8, 5), (8,)))]


@pytest.mark.parametrize(
    ("batch", "count"),
    [
        (list(images(9)), 9),  # 9 images, or 9 inputs with 3 samples each
        (list(torch.zeros(8, 100, 3)), 8),
        (list(images(5, channels=1)), 5),
        ({"a": LOADERS[0], "b": LOADERS[1]}, 12),  # 4 and 8 samples of two loaders
        (LOADERS, 12),
        (LOADERS, 8),
    ],
)
def test_samples_that_cannot_be_told_are_refused(batch: Any, count: int) -> None:
    with pytest.raises(ProblemError, match="which rows belong to which sample cannot be told"):
        check_rows(batch, count)


@pytest.mark.parametrize(
    ("batch", "count"),
    [
        (rows((64, 5), (64, 5)), 64),
        (rows((8, 16), (8, 16)), 128),
        (rows((4, 5), (4, 3), (8,)), 4),
        ([(image, 3) for image in images(9)], 9),
        ((rows((8, 5), (8, 5)), *rows((8,))), 16),
        (rows((8, 16), (128, 4)), 128),
    ],
)
def test_usual_rows_are_let_through(batch: Any, count: int) -> None:
    check_rows(batch, count)
