"""From factors to kernel blocks of parameter groups, and from kernels to Gram matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_vivit.errors import OptionError
from lightning_vivit.factors import MODES, Factor, OuterProduct, Shift, contract


def group_kernel(
    factors: Mapping[str, Factor], names: Sequence[str], mode: str = "full", split: int | None = None
) -> Tensor:
    """Tangent kernel restricted to a group of parameters.

    Args:
        factors: Factors of the parameters; a name without one contributes nothing.
        names: The group.
        mode: ``full``, ``trace`` or ``diagonal``.
        split: If given, samples 0..split-1 against the others; otherwise all against all.

    Returns:
        [N, D, M, D], [N, M] or [N, M, D].

    Raises:
        OptionError: Unknown mode, or no parameter of the group influences the outputs.
    """
    if mode not in MODES:
        raise OptionError(f"Unknown mode {mode!r}. Supported: {', '.join(MODES)}.")
    present = [factors[name] for name in names if name in factors]
    if not present:
        raise OptionError(
            f"None of the parameters {', '.join(names)} influences the outputs. Choose a "
            "parameter group with at least one used parameter."
        )
    total: Tensor | None = None
    for factor in _fuse_biases(present):
        first, second = factor, factor
        if split is not None:
            first = factor.narrow(0, split)
            second = factor.narrow(split, factor.num_samples)
        part = contract(first, second, mode)
        total = part if total is None else total.add_(part)
    assert total is not None
    return total


def _fuse_biases(factors: Sequence[Factor]) -> list[Factor]:
    """Join each weight with the bias of the same use, which then costs nothing."""
    shifts = [factor for factor in factors if isinstance(factor, Shift)]
    joined: list[Factor] = [factor for factor in factors if not isinstance(factor, Shift)]
    for shift in shifts:
        for place, factor in enumerate(joined):
            if isinstance(factor, OuterProduct):
                both = factor.with_bias(shift)
                if both is not None:
                    joined[place] = both
                    break
        else:
            joined.append(shift)
    return joined


def weigh_kernel(kernel: Tensor, root: Tensor, gradient: Tensor) -> Tensor:
    """Kernel between loss-weighted columns: T^T K T with T = [S | r].

    Args:
        kernel: K, [N, D, N, D].
        root: S, [N, D, M].
        gradient: r, [N, D].

    Returns:
        [N, M+1, N, M+1] in the dtype of `root`; the last column belongs to the gradient.
    """
    weights = torch.cat([root, gradient.unsqueeze(2)], dim=2).transpose(1, 2)  # [N, M+1, D]
    n, columns, d = weights.shape
    half = torch.bmm(weights, kernel.to(weights.dtype).reshape(n, d, n * d))
    half = half.reshape(n * columns, n, d).transpose(0, 1)  # [N, N*(M+1), D]
    whole = torch.bmm(weights, half.transpose(1, 2))  # [N, M+1, N*(M+1)]
    return whole.reshape(n, columns, n, columns)
