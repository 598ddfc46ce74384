"""What one evaluation leaves for the next one: eigenpairs, and the vectors to start from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Start:
    """Eigenpairs of an earlier evaluation, to start the next one from.

    Attributes:
        values: [K].
        vectors: [K, P].
    """

    values: Tensor
    vectors: Tensor


def starting_block(start: Start, tol: float) -> Tensor:
    """As few vectors as possible that hold all eigenvectors: sums of them, weighted by 1 / mu.

    The Krylov space of a sum of eigenvectors of different eigenvalues has each of them; those of
    nearly equal eigenvalues go into different sums, because they cannot be told apart in one.

    Args:
        start: Eigenpairs.
        tol: Relative difference below which eigenvalues count as equal.

    Returns:
        [s, P].
    """
    order = start.values.abs().argsort(descending=True)
    sums: list[Tensor] = []
    place, before = 0, None
    for index in order.tolist():
        value = float(start.values[index])
        if value == 0.0:
            continue
        near = before is not None and abs(value - before) <= 3 * tol * abs(before)
        place, before = (place + 1 if near else 0), value
        vector = start.vectors[index] / abs(value)
        if place < len(sums):
            sums[place] = sums[place] + vector
        else:
            sums.append(vector)
    return torch.stack(sums) if sums else start.vectors[:1]
