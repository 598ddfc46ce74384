"""Columns that are gathered before rows are formed, and products that stay in the cache."""

from __future__ import annotations

import pytest
import torch
from factors.test_orders import explicit, factor
from oracle.reference import case, jacobian, parameter_slices

import lightning_vivit.jacobian.collector as collector
from lightning_vivit import empirical_ntk
from lightning_vivit.factors import MODES, Factor, contract
from lightning_vivit.jacobian.autograd import AutogradBackend
from lightning_vivit.jacobian.collector import gathered_columns
from lightning_vivit.jacobian.columns import unit_columns
from lightning_vivit.jacobian.structured import jacobian_factors
from lightning_vivit.problem.problem import Problem

NAMES = [
    "cnn",
    "conv1d",
    "conv3d",
    "transposed_1d",
    "resnet_batchnorm_eval",
    "convolution_called_twice",
]


def checked_factors(
    name: str, memory_format: torch.memory_format, gathers: bool
) -> dict[str, Factor]:
    """Factors of a network's batch in a memory format, after their rows were compared."""
    found, places = case(name), parameter_slices(name)
    batch = found.inputs.contiguous(memory_format=memory_format)
    with Problem(found.model, None, batch).recorded() as live:
        located = AutogradBackend().locate(live)
        columns = unit_columns(located.outputs, located.layout)
        factors = jacobian_factors(located, columns, gathers=gathers)
    expected = jacobian(name)
    for key, place in places.items():
        torch.testing.assert_close(factors[key].rows(), expected[..., place])
    return factors


@pytest.mark.parametrize("group", [1, 2, 1000])
@pytest.mark.parametrize("name", NAMES)
def test_rows_of_gathered_columns(name: str, group: int, monkeypatch: pytest.MonkeyPatch) -> None:
    formed = []
    form_rows = collector.Collector._form_rows

    def noted(self: collector.Collector, parts: list[torch.Tensor], first: int) -> None:
        formed.append(len(parts))
        form_rows(self, parts, first)

    monkeypatch.setattr(collector.Collector, "_form_rows", noted)
    monkeypatch.setattr(collector, "gathered_columns", lambda depth, *_: min(group, depth))
    monkeypatch.setattr(collector, "_prefers_rows", lambda factor: True)
    checked_factors(name, torch.contiguous_format, gathers=True)
    assert max(formed) == min(group, jacobian(name).shape[1])


def test_groups_of_columns_fill_a_product_and_stay_small() -> None:
    assert gathered_columns(9, 96, 864, 1) == 1  # enough rows in one column
    assert gathered_columns(9, 16, 144, 1) == 9
    assert gathered_columns(9, 16, 27, 1) == 1  # short rows
    assert gathered_columns(9, 16, 144, 1 << 20) == 5  # 8 fit: 5 and 4, not 8 and 1
    assert gathered_columns(9, 16, 144, 1 << 30) == 1  # one fills the memory
    assert gathered_columns(9, 16, 144, 1 << 22) == 2
    for depth in range(1, 30):
        for outputs in (1, 7, 32, 200):
            assert 1 <= gathered_columns(depth, outputs, 10 * outputs, 1000) <= depth


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("entries", [1, 250, 1 << 20])
def test_partial_products_of_some_samples_at_a_time(
    mode: str, groups: int, entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_vivit.factors.orders._CACHED_ENTRIES", entries)
    first, second = factor(7, 3, groups, 4, 6, 5, 0), factor(3, 3, groups, 4, 6, 5, 1)
    for pair in ((first, first), (first, second)):
        found = contract(*pair, mode, "inputs_first")
        torch.testing.assert_close(found, explicit(*pair, mode))


@pytest.mark.parametrize("entries", [1, 100, 1 << 22])
def test_blocks_of_rows_of_any_size(entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_vivit.factors.orders._REUSED_ENTRIES", entries)
    some = factor(4, 3, 1, 7, 6, 5, 0, 1.0)
    torch.testing.assert_close(contract(some, some, "full", "rows"), explicit(some, some, "full"))


def test_little_memory_gathers_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, seen = AutogradBackend.factors, []

    def watched(self, located, columns, names, gathers=False):
        seen.append(gathers)
        return plain(self, located, columns, names, gathers)

    monkeypatch.setattr(AutogradBackend, "factors", watched)
    found = case("cnn")
    free = empirical_ntk(found.model, found.inputs)
    tight = empirical_ntk(found.model, found.inputs, max_memory=28_000)
    assert seen[0] is True
    assert len(seen) > 2
    assert not any(seen[1:])
    torch.testing.assert_close(tight, free)
