"""Statistics of a spectrum and of the subspace that its leading eigenvectors span.

Everything is returned in float64, whatever the dtype of the input, and computed in float64 but for
the inner products of directions in float32, which are known no better.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_vivit.double import double
from lightning_vivit.metrics.functional.checks import floats, number, refusal

_UNIT_TOLERANCE = 0.1  # directions are unit vectors up to rounding; coarser means another object
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


def flatten_directions(directions: Tensor | Mapping[str, Tensor]) -> Tensor:
    """Directions as one matrix.

    Args:
        directions: [K, P] unit vectors, or a dictionary from parameter name to [K, *shape] whose
            parts together are unit vectors. The parts are laid out in alphabetical order.

    Returns:
        [K, P] in the dtype that the parts promote to.
    """
    do = "pass the leading eigenvectors as ggn_eigenpairs returns them"
    if isinstance(directions, Mapping):
        if not directions:
            raise refusal("a dictionary of directions without entries", "name -> [K, *shape]", do)
        names = sorted(directions)
        counts = {}
        for name in names:
            part = directions[name]
            if not isinstance(part, Tensor) or part.ndim == 0:
                raise refusal(f"no [K, *shape] tensor for {name!r}", "name -> [K, *shape]", do)
            counts[name] = part.shape[0]
        if len(set(counts.values())) > 1:
            raise refusal(
                f"different numbers of directions per parameter, {counts}",
                "the same K for all parameters",
                do,
            )
        directions = torch.cat(
            [directions[name].reshape(len(directions[name]), -1) for name in names], dim=1
        )
    matrix = floats("directions", directions, "[K, P] or name -> [K, *shape]", (2,))
    norms = torch.linalg.vector_norm(
        matrix, dim=1, dtype=torch.promote_types(matrix.dtype, torch.float32)
    )
    worst = float((norms - 1.0).abs().max())
    if worst > _UNIT_TOLERANCE:
        raise refusal(
            f"directions with norms from {float(norms.min()):g} to {float(norms.max()):g}",
            "orthonormal directions, one per row",
            "orthonormalise them, or pass eigenvectors",
        )
    return matrix


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
    return overlap_of_rows(flatten_directions(first), flatten_directions(second))


def overlap_of_rows(first: Tensor, second: Tensor) -> Tensor:
    """`subspace_overlap` of two matrices [K, P] and [K', P] that are known to be orthonormal."""
    if first.shape[1] != second.shape[1]:
        raise refusal(
            f"directions with {first.shape[1]} and {second.shape[1]} entries",
            "directions over the same parameters",
            "compare directions of one parameter group of one model",
        )
    second = second.to(first.device)
    inner = _inner_products(first, second)
    return inner.square().sum() / min(first.shape[0], second.shape[0])


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
