from __future__ import annotations

import pytest
import torch
from losses.oracle import entry_numbers

from lightning_vivit.errors import ProblemError
from lightning_vivit.samples.layout import SampleLayout


@pytest.mark.parametrize("minor", [False, True])
@pytest.mark.parametrize("shape", [(6,), (6, 2), (12, 2, 3)])
def test_layout_orders_entries(minor, shape):
    layout = SampleLayout(3, minor)
    tensor = torch.arange(torch.Size(shape).numel()).reshape(shape)
    split = layout.split(tensor)
    assert split.shape == (3, shape[0] // 3, *shape[1:])
    assert torch.equal(layout.merge(split), tensor)
    assert torch.equal(layout.flatten(tensor), entry_numbers(layout, tensor.shape))
    assert torch.equal(layout.unflatten(layout.flatten(tensor), shape), tensor)


def test_minor_rows_belong_to_samples_in_turn():
    rows = torch.tensor([0, 1, 2, 0, 1, 2])
    assert SampleLayout(3, minor=True).split(rows).tolist() == [[0, 0], [1, 1], [2, 2]]


@pytest.mark.parametrize("tensor", [torch.zeros(5, 2), torch.zeros(()), torch.zeros(0, 2)])
def test_layout_refuses_what_it_cannot_divide(tensor):
    with pytest.raises(ProblemError, match="3 samples"):
        SampleLayout(3).split(tensor)
