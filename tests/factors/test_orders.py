"""Every order of contraction against every other and against explicit rows."""

from __future__ import annotations

import itertools

import pytest
import torch

from lightning_vivit.factors import MODES, ORDERS, Lookup, OuterProduct, Shift, add_uses, contract
from lightning_vivit.factors.orders import symmetric_product
from lightning_vivit.factors.planning import Size, choose_order, predicted_costs

SIZES = list(itertools.product([1, 3], [1, 2], [1, 4], [1, 5]))  # D, G, L, A


def factor(n: int, d: int, g: int, a: int, b: int, length: int, seed: int, offset=0.0):
    generator = torch.Generator().manual_seed(seed)
    columns = torch.randn(n, d, g, a, length, generator=generator, dtype=torch.float64)
    inputs = torch.randn(n, g, b, length, generator=generator, dtype=torch.float64)
    return OuterProduct(columns, inputs, torch.Size([g * a, b]), offset=offset)


def explicit(first: OuterProduct, second: OuterProduct, mode: str) -> torch.Tensor:
    left = torch.einsum("ndgal,ngbl->ndgab", first.columns, first.inputs).flatten(2)
    right = torch.einsum("ndgal,ngbl->ndgab", second.columns, second.inputs).flatten(2)
    if first.offset:
        left = torch.cat([left, first.columns.sum(4).flatten(2)], 2)
        right = torch.cat([right, second.columns.sum(4).flatten(2)], 2)
    full = torch.einsum("ncp,mdp->ncmd", left, right)
    if mode == "full":
        return full
    diagonal = torch.einsum("ndmd->nmd", full)
    return diagonal if mode == "diagonal" else diagonal.sum(-1)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("d", "g", "length", "a"), SIZES)
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_orders_agree(mode: str, order: str, d: int, g: int, length: int, a: int, offset: float):
    if offset and g > 1:
        offset = 0.0
    first = factor(4, d, g, a, 6, length, 0, offset)
    second = factor(3, d, g, a, 6, length, 1, offset)
    torch.testing.assert_close(
        contract(first, second, mode, order), explicit(first, second, mode), rtol=1e-10, atol=1e-10
    )
    torch.testing.assert_close(
        contract(first, first, mode, order), explicit(first, first, mode), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("order", ORDERS)
def test_symmetric_products_in_blocks(order: str) -> None:
    big = factor(70, 5, 1, 20, 30, 2, 0)
    torch.testing.assert_close(contract(big, big, "full", order), explicit(big, big, "full"))


@pytest.mark.parametrize("size", [191, 192, 193, 200, 320, 384, 385, 577, 640])
def test_symmetric_products_of_any_size(size: int) -> None:
    rows = torch.randn(size, 193, dtype=torch.float64)
    found = symmetric_product(rows)
    torch.testing.assert_close(found, torch.einsum("ik,jk->ij", rows, rows))


@pytest.mark.parametrize("order", ORDERS)
def test_blocks_of_different_width(order: str) -> None:
    whole = factor(4, 5, 1, 3, 6, 4, 0)
    parts = [
        OuterProduct(whole.columns[:, i], whole.inputs, whole.shape)
        for i in (slice(0, 2), slice(2, 5))
    ]
    rows = [torch.cat([contract(p, q, "full", order) for q in parts], 3) for p in parts]
    torch.testing.assert_close(torch.cat(rows, 1), explicit(whole, whole, "full"))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("length", [1, 4])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("entries", [1, 4 * 2 * 5 * 4 * 2, 1 << 24])  # one vector, two, all at once
def test_weighted_sum_is_that_of_the_rows(
    transposed: bool, length: int, groups: int, entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_vivit.factors.outer._SIDE_ENTRIES", entries)
    some = factor(4, 3, groups, 5, 6, length, 0)
    shape = torch.Size([groups * 6, 5] if transposed else [groups * 5, 6])
    weights = torch.randn(4, 3, 5, dtype=torch.float64)
    columns = some.columns.transpose(3, 4).contiguous().transpose(3, 4)  # as of linear layers
    for layout in (some.columns, columns):
        some = OuterProduct(layout, some.inputs, shape, transposed)
        expected = torch.einsum("ndk,ndp->kp", weights, some.rows()).reshape(5, *shape)
        torch.testing.assert_close(some.weighted_sum(weights), expected)
    shift = Shift(some.columns[:, :, 0], torch.Size([5]))
    expected = torch.einsum("ndk,nda->ka", weights, some.columns[:, :, 0].sum(3))
    torch.testing.assert_close(shift.weighted_sum(weights), expected)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("chunk", [1, 1 << 24])
def test_lookups(mode: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_vivit.factors.lookup._CHUNK_ENTRIES", chunk)
    generator = torch.Generator().manual_seed(0)

    def make(n: int) -> Lookup:
        columns = torch.randn(n, 3, 4, 2, generator=generator, dtype=torch.float64)
        tokens = torch.randint(-1, 6, (n, 4), generator=generator)
        return Lookup(columns, tokens, torch.Size([6, 2]))

    first, second = make(4), make(2)
    one_hot = torch.nn.functional.one_hot(first.tokens.clamp(min=0), 6).double()
    one_hot = one_hot * (first.tokens >= 0).unsqueeze(2)
    rows = torch.einsum("nlv,ndle->ndve", one_hot, first.columns).flatten(2)
    torch.testing.assert_close(first.rows(), rows)
    weights = torch.randn(4, 3, 5, generator=generator, dtype=torch.float64)
    expected = torch.einsum("ndk,ndp->kp", weights, rows).reshape(5, 6, 2)
    torch.testing.assert_close(first.weighted_sum(weights), expected)
    for other in (first, second):
        full = torch.einsum("ncp,mdp->ncmd", rows, other.rows())
        diagonal = torch.einsum("ndmd->nmd", full)
        expected = {"full": full, "diagonal": diagonal, "trace": diagonal.sum(-1)}[mode]
        torch.testing.assert_close(contract(first, other, mode), expected)
    nothing = Lookup(second.columns, torch.full_like(second.tokens, -1), second.shape)
    assert not bool(contract(first, nothing, mode).any())


def test_uses_are_summed_before_they_are_contracted() -> None:
    one, two = factor(4, 3, 1, 5, 6, 2, 0), factor(4, 3, 1, 5, 6, 3, 1)
    both = add_uses([one, two])
    assert isinstance(both, OuterProduct)
    rows = one.rows() + two.rows()
    torch.testing.assert_close(both.rows(), rows)
    torch.testing.assert_close(contract(both, both), torch.einsum("ncp,mdp->ncmd", rows, rows))
    turned = OuterProduct(two.columns, two.inputs, two.shape, transposed=True)
    mixed = add_uses([one, turned])
    torch.testing.assert_close(mixed.rows(), one.rows() + turned.rows())


def test_choice_follows_the_shapes() -> None:
    def chosen(n, d, a, b, length):
        size = Size(n, n, d, d, 1, a, b, length, True, "full")
        costs = predicted_costs(size)
        return min(costs, key=costs.get)

    assert chosen(128, 10, 512, 784, 1) == "kernels"
    assert chosen(32, 10, 64, 576, 64) in ("rows", "inputs_first")
    assert chosen(64, 10, 64, 75, 784) == "rows"
    assert chosen(16, 10, 512, 4608, 16) == "inputs_first"
    for size in ((64, 10, 32, 144, 16), (16, 9, 64, 288, 16), (32, 99, 64, 288, 2)):
        assert chosen(*size) == "inputs_first"  # 1.5 to 8 times as fast as the next one
    assert chosen(64, 9, 64, 64, 64) == "rows"
    for size in ((16, 9, 64, 288, 2), (32, 9, 512, 2304, 4), (128, 9, 512, 4608, 4)):
        assert chosen(*size) == "kernels"
    some = factor(4, 3, 1, 5, 6, 1, 0)
    assert choose_order(some, some, "full") in ORDERS


@pytest.mark.parametrize(("d", "a", "b"), [(1, 16, 9), (3, 16, 9), (2, 8, 16), (2, 5, 7)])
def test_rows_are_written_in_place(d: int, a: int, b: int) -> None:
    some = factor(4, d, 1, a, b, 11, 0)
    memory = torch.full((4, d + 2, a * b), torch.nan, dtype=torch.float64)
    some.write_rows(memory[:, 1 : d + 1])
    expected = torch.einsum("ndgal,ngbl->ndgab", some.columns, some.inputs).flatten(2)
    torch.testing.assert_close(memory[:, 1 : d + 1], expected)
    assert bool(memory[:, 0].isnan().all())
    assert bool(memory[:, d + 1].isnan().all())
