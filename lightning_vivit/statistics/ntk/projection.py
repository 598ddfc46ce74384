"""How rough an estimated kernel is."""

from __future__ import annotations

from torch import Tensor

from lightning_vivit.statistics.key import Key
from lightning_vivit.statistics.ntk.kernel_look import KernelLook


@Key(
    name="relative_error",
    category="Kernel",
    chart="Relative error of the NTK",
    definition='‖standard errors of K‖ / ‖K‖, with `mode="projected"`',
    source="Hutchinson 1989",
    range="≥ 0",
    reading="how rough the estimated kernel is: falls as 1/√projections",
    cost="none",
    detail="high",
)
def relative_error(look: KernelLook) -> Tensor | None:
    """Of an estimate only."""
    error = look.result.ntk_standard_error(look.group)
    return None if error is None else error.norm() / look.kernel.norm()
