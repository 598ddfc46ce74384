"""Rows that a contraction formed, kept for eigenvectors, against explicit Jacobians."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from factors.test_orders import explicit, factor
from oracle.reference import case, jacobian, parameter_slices
from torch import nn

from lightning_vivit import Problem, evaluate
from lightning_vivit.factors import Dense, Formed, OuterProduct, Shift, contract_keeping

TARGETS = torch.tensor([0, 2, 1, 2])
ROOM = 1 << 30
LOSS = nn.CrossEntropyLoss()


@pytest.mark.parametrize("entries", [1, 1 << 24])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("groups", "offset"), [(1, 0.0), (1, 1.0), (2, 0.0)])
def test_kept_rows_are_those_of_the_factor(
    groups: int, offset: float, transposed: bool, entries: int
) -> None:
    some = factor(4, 3, groups, 5, 6, 7, 0, offset)
    shape = torch.Size([groups * 6, 5] if transposed else [groups * 5, 6])
    some = OuterProduct(some.columns, some.inputs, shape, transposed, offset)
    kernel, kept = contract_keeping(some, entries)
    assert len(kept.blocks) == (5 * groups if entries == 1 else groups)
    torch.testing.assert_close(kernel, explicit(some, some, "full"))
    out = "ndgba" if transposed else "ndgab"
    rows = torch.einsum(f"ndgal,ngbl->{out}", some.columns, some.inputs).flatten(2)
    torch.testing.assert_close(kept.rows(), rows)
    torch.testing.assert_close(kept.narrow(1, 3).rows(), rows[1:3])
    weights = torch.randn(4, 3, 2, dtype=torch.float64)
    expected = torch.einsum("ndk,ndp->kp", weights, rows).reshape(2, *shape)
    torch.testing.assert_close(kept.weighted_sum(weights), expected)
    vectors = torch.randn(2, *shape, dtype=torch.float64)
    expected = torch.einsum("ndp,kp->ndk", rows, vectors.flatten(1))
    torch.testing.assert_close(kept.products(vectors), expected)
    assert kept.size == rows.numel() * 8
    assert (kept.num_samples, kept.num_columns) == (4, 3)


@pytest.mark.parametrize(("d", "a", "b"), [(1, 16, 9), (3, 16, 9), (2, 8, 16), (2, 5, 7)])
def test_rows_are_written_in_place(d: int, a: int, b: int) -> None:
    some = factor(4, d, 1, a, b, 11, 0)
    memory = torch.full((4, d + 2, a * b), torch.nan, dtype=torch.float64)
    some.write_rows(memory[:, 1 : d + 1])
    expected = torch.einsum("ndgal,ngbl->ndgab", some.columns, some.inputs).flatten(2)
    torch.testing.assert_close(memory[:, 1 : d + 1], expected)
    assert bool(memory[:, 0].isnan().all())
    assert bool(memory[:, d + 1].isnan().all())


@pytest.fixture
def by_rows(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every outer product is contracted by rows, and keeping them always pays."""
    monkeypatch.setattr("lightning_vivit.kernel.plan.predicted_costs", lambda size: {"rows": 1.0})
    monkeypatch.setattr("lightning_vivit.factors.planning._KEPT", 0.0)
    yield


@pytest.mark.usefixtures("by_rows")
@pytest.mark.parametrize("groups", ["all", "parameter"])
@pytest.mark.parametrize("name", ["cnn", "cnn_grouped_and_depthwise", "mlp_relu", "conv3d"])
def test_eigenvectors_of_kept_rows(name: str, groups: str) -> None:
    found = case(name)
    result = evaluate(Problem(found.model, LOSS, found.inputs, TARGETS), param_groups=groups)
    assert "rows, kept" in result.explain()
    assert any(isinstance(each, Formed) for each in result._rows.factors.values())
    outputs = found.model(found.inputs).detach().requires_grad_()
    hessian = torch.autograd.functional.hessian(lambda out: LOSS(out, TARGETS), outputs)
    rows = jacobian(name).flatten(0, 1)
    places = parameter_slices(name)
    for group, members in result.groups.items():
        own = torch.cat([rows[:, places[member]] for member in members], 1)
        ggn = own.T @ hessian.reshape(len(rows), -1) @ own
        vectors = result.eigenvectors(group, k=2)
        flat = torch.cat([vectors[member].flatten(1) for member in members], 1)
        values = result.eigenvalues(group)[-2:, None]
        torch.testing.assert_close(flat @ ggn, values * flat, rtol=1e-7, atol=1e-9)
    gradient = torch.autograd.grad(LOSS(found.model(found.inputs), TARGETS), parameters(name))
    if groups == "all":
        own_gradient = result.gradient()
        for key, expected in zip(places, gradient, strict=True):
            torch.testing.assert_close(own_gradient[key], expected)


def parameters(name: str) -> list[nn.Parameter]:
    return [p for p in case(name).model.parameters() if p.requires_grad]


@pytest.mark.usefixtures("by_rows")
def test_the_columns_of_kept_rows_are_freed() -> None:
    found = case("cnn")
    result = evaluate(Problem(found.model, LOSS, found.inputs, TARGETS))
    kept = {name: type(each) for name, each in result._rows.factors.items()}
    biased = [name for name in kept if name.endswith("weight") and kept[name] is Formed]
    assert biased
    for name in biased:
        assert kept[name.replace("weight", "bias")] is Dense
    assert Shift not in kept.values()


@pytest.mark.usefixtures("by_rows")
def test_nothing_is_kept_beyond_the_budget() -> None:
    found = case("cnn")
    problem = Problem(found.model, LOSS, found.inputs, TARGETS)
    seen = []
    for budget in (28_000, 50_000, 60_000, 70_000, 80_000, ROOM):
        result = evaluate(problem, max_memory=budget)
        used = 0
        if result._rows.factors is not None:
            used = sum(f.size for f in result._rows.factors.values() if isinstance(f, Formed))
        assert used < budget
        seen.append(used)
    assert seen[0] == 0
    assert seen[-1] > 0
    assert all(first <= second for first, second in pairwise(seen))


def test_rows_of_few_positions_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_vivit.kernel.plan.predicted_costs", lambda size: {"rows": 1.0})
    found = case("mlp_relu")  # one position
    result = evaluate(Problem(found.model, LOSS, found.inputs, TARGETS))
    assert "rows, kept" not in result.explain()
    assert not any(isinstance(each, Formed) for each in result._rows.factors.values())
