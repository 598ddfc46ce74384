"""The check for finite entries that looks at the sum first."""

from __future__ import annotations

import pytest
import torch

from lightning_vivit.machine.numbers import all_finite

LARGEST = torch.finfo(torch.float32).max


@pytest.mark.parametrize(
    ("entries", "finite"),
    [
        ([0.0, 1.0], True),
        ([LARGEST, LARGEST, 1.0], True),  # the sum overflows
        ([-LARGEST, -LARGEST, LARGEST], True),
        ([1.0, float("nan")], False),
        ([1.0, float("inf")], False),
        ([float("inf"), float("-inf")], False),
        ([], True),
    ],
)
@pytest.mark.parametrize("grad", [False, True])
def test_finite_entries(entries: list[float], finite: bool, grad: bool) -> None:
    assert all_finite(torch.tensor(entries, requires_grad=grad)) is finite
