"""Statistics of a spectrum and of the subspace that its leading eigenvectors span.

Everything is returned in float64, whatever the dtype of the input, and computed in float64 but for
the inner products of directions in float32, which are known no better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

import torch
from torch import Tensor

from lightning_vivit.machine.numbers import double
from lightning_vivit.metrics.functional.checks import floats, number, refusal

_UNIT_TOLERANCE = 0.1  # directions are unit vectors up to rounding; coarser means another object
_DIRECTIONS = "[K, P] or name -> [K, *shape]"
_SMALL = 1 << 14  # entries of a parameter below which a copy is cheaper than a product of its own
_CHUNK = 1024  # entries of two directions that are multiplied in their own precision


def effective_rank(eigenvalues: Tensor) -> Tensor:
    """Exponential of the Shannon entropy of the normalised eigenvalues (Roy and Vetterli, 2007).

    It is n for n equal eigenvalues, 1 for a matrix of rank one, and does not change if all
    eigenvalues are multiplied by the same number.

    Args:
        eigenvalues: [K] eigenvalues of a positive semi-definite matrix, in any order. Negative
            ones are taken for rounding and count as zero.

    Returns:
        A scalar between 1 and K, or 0 if no eigenvalue is positive.
    """
    values = double(floats("eigenvalues", eigenvalues, "[K]", (1,))).clamp_min(0.0)
    total = values.sum()
    if float(total) == 0.0:
        return torch.zeros_like(total)
    share = values / total
    return torch.special.entr(share).sum().exp()


def stability_limit(momentum: float | Tensor = 0.0) -> Tensor:
    """Largest sharpness times learning rate at which a step on a quadratic does not diverge.

    It is 2 for gradient descent and 2 (1 + momentum) with heavy-ball momentum in the form of
    torch.optim.SGD without Nesterov and dampening (Cohen et al., 2021, "Gradient descent on
    neural networks typically occurs at the edge of stability").

    Args:
        momentum: Momentum in [0, 1).

    Returns:
        A scalar.
    """
    return 2.0 * (1.0 + number("momentum", momentum, lowest=0.0, below=1.0))


def stability_ratio(
    sharpness: float | Tensor,
    learning_rate: float | Tensor,
    momentum: float | Tensor = 0.0,
) -> Tensor:
    """Sharpness times learning rate, divided by the `stability_limit`.

    Above 1 the step along the sharpest direction overshoots so far that it diverges on a quadratic;
    training with a large learning rate hovers about 1.

    Args:
        sharpness: Largest eigenvalue of the curvature of the loss that is trained.
        learning_rate: Learning rate, not negative.
        momentum: Momentum in [0, 1).

    Returns:
        A scalar.
    """
    sharpest = number("sharpness", sharpness)
    rate = number("learning_rate", learning_rate, lowest=0.0)
    limit = stability_limit(momentum)
    return sharpest * rate.to(sharpest.device) / limit.to(sharpest.device)


def condition_number(eigenvalues: Tensor, floor: float | None = None) -> Tensor:
    """Largest eigenvalue over the smallest one that is above rounding.

    Eigenvalues at or below `floor` times the largest are taken for zero and left out, so a
    singular matrix has the condition number of its action on its range. The default floor is
    that of a numerical rank: K times the machine epsilon of the dtype of `eigenvalues`. If they
    were computed in a wider dtype than the matrix, pass K times the epsilon of the matrix.

    Args:
        eigenvalues: [K] eigenvalues of a positive semi-definite matrix, in any order.
        floor: Relative size in [0, 1) up to which an eigenvalue counts as zero.

    Returns:
        A scalar not below 1, or NaN if no eigenvalue is positive.
    """
    values = floats("eigenvalues", eigenvalues, "[K]", (1,))
    if floor is None:
        floor = min(values.numel() * torch.finfo(values.dtype).eps, 0.5)
    relative = float(number("floor", floor, lowest=0.0, below=1.0))
    values = double(values)
    largest = values.max()
    if float(largest) <= 0.0:
        return torch.full_like(largest, torch.nan)
    return largest / values[values > relative * largest].min()


def spectrum_statistics(
    eigenvalues: Tensor,
    learning_rate: float | Tensor | None = None,
    momentum: float | Tensor = 0.0,
) -> dict[str, Tensor]:
    """The statistics of `SpectrumStatistics`.

    Args:
        eigenvalues: [K] all eigenvalues that are not zero, in any order.
        learning_rate: Learning rate of the step at which they were taken.
        momentum: Heavy-ball momentum of the optimizer.

    Returns:
        Name -> scalar: `trace`, `effective_rank`, `top_eigenvalue`, and `stability_ratio` if a
        learning rate was given.
    """
    rank = effective_rank(eigenvalues)
    spectrum = double(eigenvalues)
    top = spectrum.max()
    values = {"trace": spectrum.sum(), "effective_rank": rank, "top_eigenvalue": top}
    if learning_rate is not None:
        values["stability_ratio"] = stability_ratio(top, learning_rate, momentum)
    return values


def direction_parts(directions: Tensor | Mapping[str, Tensor]) -> list[Tensor]:
    """Directions as matrices side by side, checked.

    Args:
        directions: [K, P] unit vectors, or a dictionary from parameter name to [K, *shape] whose
            parts together are unit vectors.

    Returns:
        [K, P_i], in alphabetical order of the names: large parameters as they are, without a
        copy where they allow it, and small neighbours in one matrix.
    """
    if isinstance(directions, Mapping):
        parts = _named_parts(directions)
    else:
        parts = [floats("directions", directions, _DIRECTIONS, (2,), finite=False)]
    norms = [
        torch.linalg.vector_norm(part, dim=1, dtype=torch.promote_types(part.dtype, torch.float32))
        for part in parts
    ]
    norm = torch.linalg.vector_norm(torch.stack([double(each) for each in norms]), dim=0)
    if not float((norm - 1.0).abs().max()) <= _UNIT_TOLERANCE:
        for part in parts:
            floats("directions", part, _DIRECTIONS, (2,))
        raise refusal(
            f"directions with norms from {float(norm.min()):g} to {float(norm.max()):g}",
            "orthonormal directions, one per row",
            "orthonormalise them, or pass eigenvectors",
        )
    return parts


def _named_parts(directions: Mapping[str, Tensor]) -> list[Tensor]:
    """[K, P_i] of a dictionary with the same K everywhere."""
    do = "pass the leading eigenvectors as ggn_eigenpairs returns them"
    counts = {}
    for name, part in directions.items():
        if not isinstance(part, Tensor) or part.ndim == 0:
            raise refusal(f"no [K, *shape] tensor for {name!r}", "name -> [K, *shape]", do)
        counts[name] = part.shape[0]
    if len(set(counts.values())) > 1:
        raise refusal(
            f"different numbers of directions per parameter, {counts}",
            "the same K for all parameters",
            do,
        )
    matrices = [
        part.flatten(1) if part.ndim > 1 else part.unsqueeze(1)
        for _, part in sorted(directions.items())
        if part.numel() > 0
    ]
    if not matrices:
        raise refusal("a dictionary of directions without entries", "name -> [K, *shape]", do)
    parts = []
    for small, run in groupby(matrices, lambda matrix: matrix.shape[1] < _SMALL):
        several = [floats("directions", part, _DIRECTIONS, (2,), finite=False) for part in run]
        parts += [torch.cat(several, dim=1)] if small else several
    return parts


def subspace_overlap(
    first: Tensor | Mapping[str, Tensor],
    second: Tensor | Mapping[str, Tensor],
) -> Tensor:
    """How much two subspaces share: 1/k ||U^T V||_F^2 (Gur-Ari et al., 2018).

    It is 1 if one subspace contains the other, 0 if they are orthogonal, k / P on average for two
    random ones, and depends on the subspaces alone: not on signs, nor on the choice of a basis.

    Args:
        first: K orthonormal directions, [K, P] or name -> [K, *shape].
        second: The same kind with the same parameters; k is the smaller number of directions.

    Returns:
        A scalar.
    """
    if isinstance(first, Mapping) != isinstance(second, Mapping):
        raise refusal(
            f"directions of types {type(first).__name__} and {type(second).__name__}",
            "two matrices [K, P] or two dictionaries name -> [K, *shape]",
            "pass both in the same form",
        )
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        shapes = [
            {name: tuple(part.shape[1:]) for name, part in side.items()} for side in (first, second)
        ]
        if shapes[0] != shapes[1]:
            names = sorted(
                name
                for name in {*shapes[0], *shapes[1]}
                if shapes[0].get(name) != shapes[1].get(name)
            )
            raise refusal(
                f"directions that differ in the names or shapes of {names}",
                "directions over the same parameters",
                "compare directions of one parameter group of one model",
            )
    return overlap_of_parts(direction_parts(first), direction_parts(second))


def overlap_of_parts(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """`subspace_overlap` of [K, P_i] and [K', P_i] of `direction_parts`."""
    sizes = [sum(part.shape[1] for part in side) for side in (first, second)]
    if sizes[0] != sizes[1]:
        raise refusal(
            f"directions with {sizes[0]} and {sizes[1]} entries",
            "directions over the same parameters",
            "compare directions of one parameter group of one model",
        )
    pairs = zip(first, _as_divided(second, first), strict=True)
    inner = torch.stack([_inner_products(a, b.to(a.device)) for a, b in pairs]).sum(dim=0)
    return inner.square().sum() / min(first[0].shape[0], second[0].shape[0])


def _as_divided(parts: Sequence[Tensor], like: Sequence[Tensor]) -> Sequence[Tensor]:
    """One matrix divided into the parts of another one; several parts as they are."""
    if len(parts) > 1:
        return parts
    return parts[0].split([part.shape[1] for part in like], dim=1)


def _inner_products(first: Tensor, second: Tensor) -> Tensor:
    """U V^T of matrices [K, P] and [K', P]: sums in float64 of products over short chunks."""
    dtype = torch.promote_types(torch.promote_types(first.dtype, second.dtype), torch.float32)
    size = first.shape[1] // _CHUNK * _CHUNK
    left, right = (
        side[:, :size].unflatten(1, (-1, _CHUNK)).transpose(0, 1).to(dtype)
        for side in (first, second)
    )  # each [P / chunk, K, chunk]
    inner = double(torch.bmm(left, right.transpose(1, 2))).sum(dim=0)
    return inner + double(first[:, size:]) @ double(second[:, size:]).T
