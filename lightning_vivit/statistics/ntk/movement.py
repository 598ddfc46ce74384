"""How far the kernel has moved."""

from __future__ import annotations

from torch import Tensor

from lightning_vivit.statistics.key import Key
from lightning_vivit.statistics.ntk.kernel_look import KernelLook

FORT = "[Fort et al. 2020](https://arxiv.org/abs/2010.15110)"
DISTANCE = "Distance to the first and the previous kernel"


@Key(
    name="distance_first",
    category="Kernel",
    chart=DISTANCE,
    definition='1 − ⟨K, K₀⟩ / (‖K‖ ‖K₀‖), K₀ at the first monitored step; not with `data="batch"`',
    source=FORT,
    range="0 to 1",
    reading="stays near 0: lazy regime, the network is its linearisation",
    cost="memory for K₀",
    detail="low",
    option="fixed_samples",
)
def distance_first(look: KernelLook) -> Tensor:
    """On the same samples only."""
    return look.distances[0]


@Key(
    name="distance_previous",
    category="Kernel",
    chart=DISTANCE,
    definition="the same to the previous monitored step",
    source=FORT,
    range="0 to 1",
    reading="falls when the kernel settles",
    cost="memory for one kernel",
    detail="high",
    option="fixed_samples",
    late=True,
)
def distance_previous(look: KernelLook) -> Tensor | None:
    """From the second monitored step on."""
    return look.distances[1] if len(look.distances) > 1 else None


@Key(name="kernel", kind="array", category="Kernel", definition="K, [N, N, C, C] or [N, N]")
def kernel_array(look: KernelLook) -> Tensor:
    """In the layout of its mode."""
    return look.kernel
