"""Statistics of spectra and subspaces against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_vivit.errors import OptionError
from lightning_vivit.metrics.functional import (
    condition_number,
    effective_rank,
    stability_limit,
    stability_ratio,
    subspace_overlap,
)


def orthonormal(k: int, p: int, seed: int = 0) -> torch.Tensor:
    """K random orthonormal rows of length P."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(p, k, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(noise).Q.T


@pytest.mark.parametrize("n", [1, 2, 17])
def test_effective_rank_of_equal_eigenvalues_is_their_number(n):
    assert effective_rank(torch.full((n,), 3.0)).item() == pytest.approx(n, rel=1e-12)


def test_effective_rank_by_hand():
    # p = (1/2, 1/4, 1/4): entropy = 1.5 log 2
    assert effective_rank(torch.tensor([2.0, 1.0, 1.0])).item() == pytest.approx(2**1.5)


def test_effective_rank_of_rank_one_and_of_zero():
    assert effective_rank(torch.tensor([0.0, 0.0, 5.0])).item() == 1.0
    assert effective_rank(torch.zeros(4)).item() == 0.0


def test_effective_rank_ignores_order_scale_and_negative_rounding():
    values = torch.tensor([1e-3, 0.2, 4.0, 9.0], dtype=torch.float64)
    expected = effective_rank(values)
    assert torch.allclose(effective_rank(1e-30 * values.flip(0)), expected)
    rounded = torch.cat([torch.tensor([-1e-12]).double(), values])
    assert effective_rank(rounded).item() == pytest.approx(expected.item(), rel=1e-14)


def test_values_are_float64_for_every_input_dtype():
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        assert effective_rank(torch.ones(3, dtype=dtype)).dtype == torch.float64
        assert condition_number(torch.ones(3, dtype=dtype)).dtype == torch.float64


def test_stability_limits():
    assert stability_limit().item() == 2.0
    assert stability_limit(0.9).item() == pytest.approx(3.8)
    assert stability_ratio(20.0, 0.1).item() == pytest.approx(1.0)
    assert stability_ratio(torch.tensor(38.0), torch.tensor(0.1), 0.9).item() == pytest.approx(1.0)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize(("ratio", "diverges"), [(0.98, False), (1.02, True)])
def test_sgd_on_a_quadratic_diverges_where_the_ratio_says(momentum, ratio, diverges):
    sharpness = 7.0
    learning_rate = ratio * 2 * (1 + momentum) / sharpness
    assert stability_ratio(sharpness, learning_rate, momentum).item() == pytest.approx(ratio)
    point = torch.ones((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([point], lr=learning_rate, momentum=momentum)
    for _ in range(2000):
        optimizer.zero_grad()
        (sharpness / 2 * point**2).backward()
        optimizer.step()
    assert (abs(point.item()) > 1.0) == diverges


def test_condition_number_leaves_rounding_out():
    values = torch.tensor([-1e-9, 1e-8, 2.0, 5.0, 10.0], dtype=torch.float32)
    assert condition_number(values).item() == 5.0
    assert condition_number(values.double(), floor=0.0).item() == pytest.approx(1e9)
    assert condition_number(values, floor=0.3).item() == 2.0
    assert condition_number(torch.ones(6)).item() == 1.0
    assert math.isnan(condition_number(torch.zeros(2)).item())


def test_condition_number_agrees_with_linalg():
    root = torch.randn(8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    matrix = root.T @ root
    expected = torch.linalg.cond(matrix)
    assert torch.allclose(condition_number(torch.linalg.eigvalsh(matrix)), expected)


def test_overlap_of_equal_orthogonal_and_tilted_subspaces():
    axes = torch.eye(6, dtype=torch.float64)
    assert subspace_overlap(axes[:2], axes[:2]).item() == 1.0
    assert subspace_overlap(axes[:2], axes[2:4]).item() == 0.0
    assert subspace_overlap(axes[:2], axes[1:3]).item() == 0.5
    angle = 0.3
    tilted = math.cos(angle) * axes[:1] + math.sin(angle) * axes[1:2]
    assert subspace_overlap(axes[:1], tilted).item() == pytest.approx(math.cos(angle) ** 2)


def test_overlap_depends_on_the_subspace_alone():
    first, second = orthonormal(3, 20, 0), orthonormal(3, 20, 1)
    rotation = orthonormal(3, 3, 2)
    expected = subspace_overlap(first, second)
    assert torch.allclose(subspace_overlap(rotation @ first, -second), expected)
    assert torch.allclose(subspace_overlap(second, first), expected)
    projectors = (first.T @ first, second.T @ second)
    assert torch.allclose((projectors[0] @ projectors[1]).trace() / 3, expected)


def test_overlap_of_a_contained_subspace_is_one():
    rows = orthonormal(4, 9)
    assert subspace_overlap(rows, rows[:2]).item() == pytest.approx(1.0)


def test_overlap_of_dictionaries_is_that_of_the_matrices():
    first, second = orthonormal(2, 10, 0), orthonormal(2, 10, 1)
    as_parts = [{"w": m[:, :6].reshape(2, 2, 3), "b": m[:, 6:]} for m in (first, second)]
    reordered = dict(reversed(as_parts[1].items()))
    assert torch.allclose(subspace_overlap(as_parts[0], reordered), subspace_overlap(first, second))


@pytest.mark.parametrize("size", [1023, 1024, 1025, 5 * 1024 + 7])
@pytest.mark.parametrize(
    ("dtypes", "error"),
    [
        ((torch.float64, torch.float64), 1e-14),
        ((torch.float32, torch.float32), 5e-7),
        ((torch.float32, torch.float64), 5e-7),
        ((torch.bfloat16, torch.bfloat16), 1e-2),
    ],
)
def test_long_directions_are_multiplied_in_pieces(size, dtypes, error):
    both = orthonormal(5, size)
    first, second = both[:3].to(dtypes[0]), both[1:5].to(dtypes[1])
    assert subspace_overlap(first, second).item() == pytest.approx(2 / 3, abs=error)
    turned = orthonormal(3, size, 1)
    expected = (both[:3] @ turned.T).square().sum() / 3
    found = subspace_overlap(first, turned.to(dtypes[1]))
    assert found.item() == pytest.approx(expected.item(), rel=10 * error)


def test_large_finite_values_are_not_taken_for_infinite_ones():
    largest = torch.full((4,), 3e38)  # whose sum is infinite in float32
    assert effective_rank(largest).item() == pytest.approx(4.0)
    with pytest.raises(OptionError, match="1 of 4 entries infinite"):
        effective_rank(torch.tensor([3e38, 3e38, math.inf, 1.0]))
    with pytest.raises(OptionError, match="2 of 4 entries infinite"):
        effective_rank(torch.tensor([-math.inf, 3e38, math.inf, 1.0]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: effective_rank(torch.ones(2, 2)), r"eigenvalues of shape \[2, 2\]"),
        (lambda: effective_rank(torch.ones(0)), r"eigenvalues of shape \[0\]"),
        (lambda: effective_rank(torch.tensor([1, 2])), "dtype torch.int64"),
        (lambda: effective_rank([1.0, 2.0]), "of type list"),
        (lambda: condition_number(torch.tensor([1.0, math.nan])), "1 of 2 entries"),
        (lambda: condition_number(torch.ones(2), floor=2.0), "floor = 2"),
        (lambda: stability_limit(1.0), "momentum = 1"),
        (lambda: stability_ratio(math.inf, 0.1), "sharpness = inf"),
        (lambda: stability_ratio(1.0, -0.1), "learning_rate = -0.1"),
        (lambda: stability_ratio(torch.ones(2), 0.1), r"sharpness as a tensor of shape \[2\]"),
        (lambda: stability_ratio("1", 0.1), "sharpness of type str"),
        (lambda: subspace_overlap(torch.eye(3), torch.eye(4)), "3 and 4 entries"),
        (lambda: subspace_overlap(2 * torch.eye(3), torch.eye(3)), "norms from 2 to 2"),
        (lambda: subspace_overlap(torch.eye(3), {"w": torch.eye(3)}), "types Tensor and dict"),
        (lambda: subspace_overlap({"w": torch.eye(3)}, {"v": torch.eye(3)}), r"\['v', 'w'\]"),
        (lambda: subspace_overlap({}, {}), "without entries"),
        (
            lambda: subspace_overlap(*[{"w": torch.eye(3), "b": torch.zeros(2, 1)}] * 2),
            "different numbers of directions",
        ),
    ],
)
def test_wrong_input_is_refused(call, message):
    with pytest.raises(OptionError, match=message) as caught:
        call()
    assert "Supported: " in str(caught.value)
    assert "To do: " in str(caught.value)
