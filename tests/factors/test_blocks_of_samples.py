"""Blocks of samples in the order that sums over the inputs first, as with several threads."""

from __future__ import annotations

import pytest
import torch

from lightning_vivit.factors import OuterProduct, orders


def factor(samples: int, groups: int, seed: int) -> OuterProduct:
    draw = torch.Generator().manual_seed(seed)
    columns = torch.randn(samples, 3, groups, 4, 5, generator=draw, dtype=torch.float64)
    inputs = torch.randn(samples, groups, 6, 5, generator=draw, dtype=torch.float64)
    return OuterProduct(columns, inputs, torch.Size((groups * 4, 6)), offset=1.0)


def explicit(first: OuterProduct, second: OuterProduct, mode: str) -> torch.Tensor:
    rows = [
        torch.cat([own.rows(), own.columns.sum(4).flatten(2)], 2) for own in (first, second)
    ]  # of the weight and the bias
    full = torch.einsum("ncp,mdp->ncmd", *rows)
    if mode == "full":
        return full
    diagonal = full.diagonal(dim1=1, dim2=3)  # [N, M, D]
    return diagonal.sum(2) if mode == "trace" else diagonal


@pytest.mark.parametrize("entries", [1, 60, 300, 10_000])
@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("mode", ["full", "trace", "diagonal"])
def test_any_blocks_give_the_explicit_kernel(mode, groups, threads, entries, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(orders, "_CACHED_ENTRIES", entries)
    monkeypatch.setattr(orders, "_WIDTH", 15)  # three samples of five positions
    first, second = factor(7, groups, 0), factor(5, groups, 1)
    span = orders._span(first)
    assert span % threads == 0  # the threads get as much work
    assert span == threads if entries == 1 else span >= threads
    for left, right in ((first, first), (first, second)):
        found = orders.by_inputs_first(left, right, mode)
        torch.testing.assert_close(found, explicit(left, right, mode))
