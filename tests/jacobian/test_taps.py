"""Factors whose inputs come with a kernel's positions first, as maps with the channels last do."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from factors.test_orders import explicit, factor
from jacobian.test_gathered_columns import checked_factors
from torch import Tensor, nn

from lightning_vivit import Problem, evaluate
from lightning_vivit.factors import ORDERS, Dense, OuterProduct, contract
from lightning_vivit.jacobian.collector import Collector
from lightning_vivit.rules import conv

N, D, G, A, INPUTS, TAPS, L = 4, 3, 2, 5, 3, 4, 7
SHAPE = torch.Size([G * A, INPUTS, 2, 2])


def with_taps() -> tuple[OuterProduct, Tensor]:
    """A factor, and its rows in the parameter's order."""
    some = factor(N, D, G, A, INPUTS * TAPS, L, 0)
    found = OuterProduct(some.columns, some.inputs, SHAPE, taps=TAPS)
    inputs = some.inputs.reshape(N, G, TAPS, INPUTS, L)
    return found, torch.einsum("ndgal,ngtil->ndgait", some.columns, inputs).flatten(2)


def test_rows_are_in_the_order_of_the_parameter() -> None:
    some, rows = with_taps()
    torch.testing.assert_close(some.rows(), rows)
    torch.testing.assert_close(some.narrow(1, 3).rows(), rows[1:3])
    memory = torch.empty(N, D, SHAPE.numel(), dtype=torch.float64)
    some.write_rows(memory)
    dense = Dense(memory, SHAPE, TAPS)
    torch.testing.assert_close(dense.rows(), rows)
    torch.testing.assert_close(dense.narrow(1, 3).rows(), rows[1:3])
    dense.write_rows(again := torch.empty_like(memory))
    assert torch.equal(again, memory)
    weights = torch.randn(N, D, 2, dtype=torch.float64)
    vectors = torch.randn(2, *SHAPE, dtype=torch.float64)
    for each in (some, dense):
        expected = torch.einsum("ndk,ndp->kp", weights, rows).reshape(2, *SHAPE)
        torch.testing.assert_close(each.weighted_sum(weights), expected)
        expected = torch.einsum("ndp,kp->ndk", rows, vectors.flatten(1))
        torch.testing.assert_close(each.products(vectors), expected)


@pytest.mark.parametrize("order", ORDERS)
def test_orders_and_rows_in_another_order_agree(order: str) -> None:
    some, rows = with_taps()
    expected = explicit(some, some, "full")
    torch.testing.assert_close(contract(some, some, "full", order), expected)
    plain = Dense(rows, SHAPE)
    own = Dense(some.rows(), SHAPE)
    some.write_rows(memory := torch.empty_like(rows))
    for other in (plain, own, Dense(memory, SHAPE, TAPS)):
        torch.testing.assert_close(contract(some, other), expected)
        torch.testing.assert_close(contract(plain, other), expected)
        torch.testing.assert_close(contract(Dense(memory, SHAPE, TAPS), other), expected)
    other = OuterProduct(some.columns, some.inputs, SHAPE)
    assert not some.joins(other) and some.joins(some.narrow(0, 2))
    torch.testing.assert_close(some.join([some]).rows(), 2 * rows)


@pytest.mark.parametrize("shared", [False, True])
def test_rows_of_inputs_with_the_channels_last(shared: bool) -> None:
    some = factor(N, D, 1, A, 16, L, 0)
    columns = some.columns[:1].expand_as(some.columns) if shared else some.columns
    inputs = some.inputs.transpose(2, 3).contiguous().transpose(2, 3)
    found = OuterProduct(columns, inputs, some.shape)
    found.write_rows(memory := torch.empty(N, D, A * 16, dtype=torch.float64))
    expected = torch.einsum("ndgal,ngbl->ndgab", columns, inputs).flatten(2)
    torch.testing.assert_close(memory, expected)


@pytest.mark.parametrize("gathers", [False, True])
@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("name", ["cnn", "resnet_batchnorm_eval", "convolution_called_twice"])
def test_networks_with_the_channels_last(
    name: str, rows: bool, gathers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Float64, so that nothing is substituted: the format is that of the user's batch."""
    monkeypatch.setattr(conv, "_ADJACENT", 1)
    monkeypatch.setattr("lightning_vivit.jacobian.collector._prefers_rows", lambda factor: rows)
    formats = []
    form_rows = Collector._form_rows

    def noted(self: Collector, parts: list[Tensor], first: int) -> None:
        formats.extend(part.stride(2) == 1 for part in parts if part.ndim == 5)
        form_rows(self, parts, first)

    monkeypatch.setattr(Collector, "_form_rows", noted)
    factors = checked_factors(name, torch.channels_last, gathers)
    assert any(formats) or not rows
    taps = [each.taps for each in factors.values()]
    added = rows and name == "convolution_called_twice"  # rows of two uses, as the parameter's
    assert (max(taps) > 1) != added


def test_eigenvectors_have_the_order_of_the_parameter() -> None:
    torch.manual_seed(0)
    conv_last, conv_first = (nn.Conv2d(12, 6, 3, padding=1).double() for _ in range(2))
    conv_first.load_state_dict(conv_last.state_dict())
    inputs, targets = torch.randn(5, 12, 8, 8).double(), torch.tensor([0, 1, 2, 1, 0])
    found = []
    for layer, memory_format in (
        (conv_last, torch.channels_last),
        (conv_first, torch.contiguous_format),
    ):
        model = nn.Sequential(layer, nn.Tanh(), nn.Flatten(), nn.Linear(384, 3)).double()
        with torch.no_grad():
            for value in model[3].parameters():
                value.copy_(torch.linspace(-1, 1, value.numel()).reshape(value.shape).sin() / 9)
        batch = inputs.contiguous(memory_format=memory_format)
        problem = Problem(model, F.cross_entropy, batch, targets)
        result = evaluate(problem)
        vectors = result.eigenvectors(k=2)
        kernel = result.ntk()
        found.append((kernel, {name: v.abs() for name, v in vectors.items()}))
    torch.testing.assert_close(*found)
