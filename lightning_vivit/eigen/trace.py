"""Trace of a matrix that is known by its quadratic forms, with an error estimate.

Hutch++ (Meyer, Musco, Musco and Woodruff 2021, arXiv:2010.09649): the trace on a subspace that
holds the leading eigenvectors is exact, and Hutchinson's estimator with random signs covers the
complement. The subspace is the basis that the eigensolver has built anyway.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_vivit.errors import OptionError


@dataclass(frozen=True)
class TraceEstimate:
    """An estimated trace.

    Attributes:
        value: The estimate.
        error: Its standard error, from the spread of the random vectors.
        samples: Number of random vectors.
    """

    value: float
    error: float
    samples: int


def estimate_trace(
    quadratic: Callable[[Tensor], Tensor],
    basis: Tensor,
    captured: float,
    samples: int,
    generator: torch.Generator | None = None,
) -> TraceEstimate:
    """Trace on a subspace plus a random estimate of the rest.

    Args:
        quadratic: [b, P] -> [b], the forms v^T A v.
        basis: [m, P] orthonormal rows Q; m may be P.
        captured: Trace of Q A Q^T.
        samples: Number of random vectors, at least 2.
        generator: Source of random signs, on the CPU; None for a fixed seed.

    Returns:
        The estimate. Costs one quadratic form for each sample.

    Raises:
        OptionError: Fewer than two samples.
    """
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 2:
        raise OptionError(f"The samples of a trace have to be an integer >= 2, got {samples!r}.")
    if basis.shape[0] >= basis.shape[1]:
        return TraceEstimate(captured, 0.0, 0)
    random = generator or torch.Generator().manual_seed(0)
    forms = []
    for _ in range(samples):
        signs = torch.randint(0, 2, (1, basis.shape[1]), generator=random) * 2 - 1
        vector = signs.to(basis)
        for _ in range(2):
            vector -= (vector @ basis.T) @ basis
        forms.append(quadratic(vector)[0].double())
    spread = torch.stack(forms)
    value = captured + float(spread.mean())
    return TraceEstimate(value, float(spread.std() / samples**0.5), samples)
