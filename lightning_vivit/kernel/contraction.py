"""From factors to kernel blocks of parameter groups, and from kernels to Gram matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from lightning_vivit.factors import Factor, OuterProduct, Shift
from lightning_vivit.kernel.plan import Plan


def add_kernels(
    plan: Plan,
    factors: Mapping[str, Factor],
    others: Mapping[str, Factor],
    names: Sequence[str],
    mode: str = "full",
    split: int | None = None,
) -> Tensor | None:
    """Kernel contribution of some parameters of a group.

    Args:
        plan: Notes what each contraction cost.
        factors: Factors of the parameters; a name without one contributes nothing.
        others: Factors of the right side; the same object for a symmetric kernel.
        names: The parameters.
        mode: ``full``, ``trace`` or ``diagonal``.
        split: If given, samples 0..split-1 against the others; otherwise all against all.

    Returns:
        [N, C, M, D], [N, M] or [N, M, D]; None if nothing contributes.
    """
    total: Tensor | None = None
    both = [name for name in names if name in factors and name in others]
    plain = {name: factors[name] for name in both}
    left = right = fuse_biases(plain)
    if others is not factors:
        others = {name: others[name] for name in both}
        right = fuse_biases(others)
        if right.keys() != left.keys():  # different forms of the same parameters
            left, right = plain, others
    for name, factor in left.items():
        first, second = factor, right[name]
        if split is not None:
            first = factor.narrow(0, split)
            second = second.narrow(split, second.num_samples)
        part = plan.run(name, first, second, mode)
        total = part if total is None else total.add_(part)
    return total


def fuse_biases(factors: Mapping[str, Factor]) -> dict[str, Factor]:
    """Join each weight with the bias of the same use, which then costs nothing."""
    joined = {name: f for name, f in factors.items() if not isinstance(f, Shift)}
    for bias, shift in factors.items():
        if not isinstance(shift, Shift):
            continue
        for name, factor in joined.items():
            both = factor.with_bias(shift) if isinstance(factor, OuterProduct) else None
            if both is not None:
                del joined[name]
                joined[f"{name}, {bias.rpartition('.')[2]}"] = both
                break
        else:
            joined[bias] = shift
    return joined
