"""Statistics of kernels against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import one_hot

from lightning_vivit.errors import OptionError
from lightning_vivit.metrics.functional import (
    flatten_kernel,
    kernel_alignment,
    kernel_distance,
    kernel_eigenvalues,
    trace_kernel,
)
from lightning_vivit.metrics.functional.kernel import _PIECE, kernel_distances


def jacobians(n: int = 5, c: int = 3, p: int = 7, seed: int = 0) -> torch.Tensor:
    """Random [N, C, P]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, c, p, generator=generator, dtype=torch.float64)


def full_kernel(rows: torch.Tensor) -> torch.Tensor:
    """[N, N, C, C]."""
    return torch.einsum("ncp,mdp->nmcd", rows, rows)


def test_shapes_of_a_kernel():
    rows = jacobians()
    kernel = full_kernel(rows)
    matrix = rows.reshape(15, 7)
    assert torch.allclose(flatten_kernel(kernel), matrix @ matrix.T)
    assert torch.allclose(trace_kernel(kernel), torch.einsum("ncp,mcp->nm", rows, rows))
    diagonal = kernel.diagonal(dim1=2, dim2=3)
    assert torch.allclose(trace_kernel(diagonal), trace_kernel(kernel))
    small = trace_kernel(kernel)
    assert trace_kernel(small) is small
    assert flatten_kernel(small) is small
    assert flatten_kernel(kernel[:2]).shape == (6, 15)
    assert trace_kernel(kernel.float()).dtype == torch.float32


def test_eigenvalues_are_the_squared_singular_values():
    rows = jacobians()
    found = kernel_eigenvalues(full_kernel(rows))
    expected = torch.linalg.svdvals(rows.reshape(15, 7)).square().flip(0)
    assert found.shape == (15,)
    assert torch.allclose(found[-7:], expected)
    assert found[:-7].abs().max() < 1e-12 * found[-1]
    assert kernel_eigenvalues(torch.eye(4)).tolist() == [1.0] * 4


@pytest.mark.parametrize("centered", [True, False])
def test_alignment_of_a_kernel_with_its_own_labels_is_one(centered):
    values = torch.tensor([1.0, -2.0, 0.5, 3.0])
    alignment = kernel_alignment(3 * torch.outer(values, values), values, centered=centered)
    assert alignment.item() == pytest.approx(1.0)
    classes = torch.tensor([0, 2, 1, 2, 0])
    encoded = one_hot(classes, 3).double()
    alignment = kernel_alignment(encoded @ encoded.T, classes, centered=centered)
    assert alignment.item() == pytest.approx(1.0)


def test_alignment_by_the_definition():
    kernel = full_kernel(jacobians())
    classes = torch.tensor([0, 2, 1, 2, 0])
    center = torch.eye(5, dtype=torch.float64) - 1 / 5
    encoded = one_hot(classes, 4).double()
    first = center @ torch.einsum("nmcc->nm", kernel) @ center
    second = center @ encoded @ encoded.T @ center
    expected = (first * second).sum() / (first.norm() * second.norm())
    assert torch.allclose(kernel_alignment(kernel, classes, num_classes=4), expected)
    assert torch.allclose(kernel_alignment(kernel, encoded), expected)


def test_alignment_invariances():
    kernel = trace_kernel(full_kernel(jacobians()))
    classes = torch.tensor([0, 2, 1, 2, 0])
    expected = kernel_alignment(kernel, classes)
    order = torch.tensor([3, 1, 4, 0, 2])
    renamed = torch.tensor([1, 0, 2])[classes]
    assert torch.allclose(kernel_alignment(7 * kernel, classes), expected)
    assert torch.allclose(kernel_alignment(kernel + 100, classes), expected)
    assert torch.allclose(kernel_alignment(kernel[order][:, order], classes[order]), expected)
    assert torch.allclose(kernel_alignment(kernel, renamed), expected)
    assert torch.allclose(kernel_alignment(kernel, classes.to(torch.uint8)), expected)


def test_alignment_with_orthogonal_labels_is_zero():
    values = torch.tensor([1.0, 1.0, -1.0, -1.0])
    others = torch.tensor([1.0, -1.0, 1.0, -1.0])
    assert kernel_alignment(torch.outer(values, values), others).item() == 0.0


@pytest.mark.parametrize("repeats", [1, 2])  # fewer positions than samples, and more
def test_alignment_with_several_positions(repeats):
    kernel = trace_kernel(full_kernel(jacobians(4)))
    tokens = torch.tensor([[0, 1, 2], [0, 2, 2], [1, 1, 0], [3, 1, 2]]).repeat(1, repeats)
    encoded = one_hot(tokens).flatten(1).double()
    assert torch.allclose(kernel_alignment(kernel, tokens), kernel_alignment(kernel, encoded))
    padded = tokens.clone()
    padded[0, 0] = padded[3, 2] = -100
    encoded = one_hot(tokens).double()
    encoded[0, 0] = encoded[3, 2] = 0.0
    expected = kernel_alignment(kernel, encoded)
    assert torch.allclose(kernel_alignment(kernel, padded), expected)
    padded[padded == -100] = 9
    assert torch.allclose(kernel_alignment(kernel, padded, 4, ignore_index=9), expected)


def test_alignment_leaves_samples_without_label_out():
    kernel = trace_kernel(full_kernel(jacobians()))
    classes = torch.tensor([0, -100, 1, 2, 0])
    keep = torch.tensor([0, 2, 3, 4])
    expected = kernel_alignment(kernel[keep][:, keep], classes[keep])
    assert torch.allclose(kernel_alignment(kernel, classes), expected)


def test_alignment_is_nan_where_nothing_can_be_aligned():
    kernel = trace_kernel(full_kernel(jacobians()))
    assert math.isnan(kernel_alignment(kernel, torch.full((5,), 2)).item())
    assert math.isnan(kernel_alignment(kernel, torch.full((5,), -100)).item())
    assert math.isnan(kernel_alignment(torch.full((5, 5), 0.1), torch.arange(5)).item())
    assert math.isnan(kernel_alignment(kernel[:1, :1], torch.tensor([0])).item())


def test_alignment_with_flags_and_multi_labels():
    kernel = trace_kernel(full_kernel(jacobians()))
    flags = torch.tensor([[1, 0], [1, 1], [0, 0], [0, 1], [1, 0]])
    expected = kernel_alignment(kernel, flags.double())
    assert torch.allclose(kernel_alignment(kernel, flags.bool()), expected)


def test_distances():
    kernel = full_kernel(jacobians())
    assert kernel_distance(kernel, kernel).item() == pytest.approx(0.0, abs=1e-12)
    assert kernel_distance(kernel, 3e8 * kernel).item() == pytest.approx(0.0, abs=1e-12)
    assert kernel_distance(torch.eye(4), torch.ones(4, 4)).item() == pytest.approx(0.5)
    first, second = torch.diag(torch.tensor([1.0, 0.0])), torch.diag(torch.tensor([0.0, 1.0]))
    assert kernel_distance(first, second).item() == 1.0
    assert math.isnan(kernel_distance(first, 0 * first).item())
    other = full_kernel(jacobians(seed=1))
    assert torch.allclose(kernel_distance(kernel, other), kernel_distance(other, kernel))


@pytest.mark.parametrize("layout", [(0, 1, 2, 3), (0, 2, 1, 3)])
def test_a_distance_is_the_cosine_of_all_pieces(layout: tuple[int, ...]):
    size = (24, 24, 16, 16)  # more entries than one piece has
    kernels = [torch.rand(size, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    assert kernels[0].numel() > _PIECE
    first, second = (kernel.permute(layout).contiguous().permute(layout) for kernel in kernels)
    a, b = (kernel.double().flatten() for kernel in kernels)
    expected = 1 - (a @ b) / (a.norm() * b.norm())
    assert kernel_distance(first, second).item() == pytest.approx(expected.item(), abs=1e-12)


def test_distances_to_several_references_are_those_to_each():
    kernel, first, second = (full_kernel(jacobians(seed=i)).float() for i in range(3))
    found = kernel_distances(kernel, [first, second, 0 * first])
    assert torch.equal(
        found[:2], torch.stack([kernel_distance(kernel, o) for o in (first, second)])
    )
    assert math.isnan(found[2].item())
    with pytest.raises(OptionError, match=r"\[3, 3\]"):
        kernel_distances(kernel, [first, SQUARE])
    for wrong in (math.nan, math.inf):
        broken = second.clone()
        broken[1, 0, 0, 0] = wrong
        with pytest.raises(OptionError, match="reference kernel with 1 of"):
            kernel_distances(kernel, [first, broken])
        with pytest.raises(OptionError, match="Got kernel with 1 of"):
            kernel_distances(broken, [first])


def test_tiny_and_huge_kernels_neither_vanish_nor_overflow():
    kernel = trace_kernel(full_kernel(jacobians())).float()
    classes = torch.tensor([0, 2, 1, 2, 0])
    expected = kernel_alignment(kernel, classes)
    assert torch.allclose(kernel_alignment(kernel * 1e-30, classes), expected, rtol=1e-5)
    assert torch.allclose(kernel_alignment(kernel * 1e30, classes), expected, rtol=1e-5)


SQUARE = torch.eye(3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: trace_kernel(torch.ones(2, 2, 3, 4)), r"shape \[2, 2, 3, 4\]"),
        (lambda: trace_kernel(torch.ones(2)), r"kernel of shape \[2\]"),
        (lambda: flatten_kernel(torch.ones(2, 2, 2)), r"kernel of shape \[2, 2, 2\]"),
        (lambda: kernel_eigenvalues(torch.ones(2, 3)), r"shape \[2, 3\]"),
        (lambda: kernel_eigenvalues(torch.tensor([[1.0, 1.0], [0.0, 1.0]])), "transpose"),
        (lambda: kernel_eigenvalues(SQUARE * math.inf), "entries infinite or NaN"),
        (lambda: kernel_distance(SQUARE, torch.eye(4)), r"\[3, 3\] and \[4, 4\]"),
        (lambda: kernel_alignment(torch.ones(2, 3), torch.ones(2)), r"shape \[2, 3\]"),
        (lambda: kernel_alignment(SQUARE, torch.ones(4)), r"targets \[4\] for a kernel of 3"),
        (lambda: kernel_alignment(SQUARE, [0, 1, 2]), "targets list for a kernel"),
        (lambda: kernel_alignment(SQUARE, torch.tensor([0, 1, -1])), "indices from -1 to 1"),
        (lambda: kernel_alignment(SQUARE, torch.tensor([0, 1, 5]), 3), "indices from 0 to 5"),
        (lambda: kernel_alignment(SQUARE, torch.ones(3) * math.nan), "targets with 3 of 3"),
        (lambda: kernel_alignment(SQUARE, torch.ones(3, dtype=torch.complex64)), "complex64"),
        (lambda: kernel_alignment(SQUARE, torch.ones(3, 0)), r"shape \[3, 0\]"),
    ],
)
def test_wrong_input_is_refused(call, message):
    with pytest.raises(OptionError, match=message):
        call()
