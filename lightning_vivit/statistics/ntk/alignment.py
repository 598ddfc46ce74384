"""The kernel against the labels."""

from __future__ import annotations

from torch import Tensor

from lightning_vivit.figures import draw_kernel
from lightning_vivit.metrics.functional import kernel_alignment, trace_kernel
from lightning_vivit.statistics.findings import Draw
from lightning_vivit.statistics.key import Key
from lightning_vivit.statistics.ntk.kernel_look import KernelLook


@Key(
    name="alignment",
    category="Kernel",
    chart="Alignment with the labels",
    definition="⟨K̃, L̃⟩ / (‖K̃‖ ‖L̃‖), K̃ and L̃ = YYᵀ centred, K̃ summed over outputs",
    source="[Cortes et al. 2012](https://jmlr.org/papers/v13/cortes12a.html)",
    range="−1 to 1",
    reading="rising: features for the labels are learned; 1: the kernel is that of the labels",
    cost="N²",
    detail="low",
)
def alignment(look: KernelLook) -> Tensor | None:
    """Only if the loss has a target tensor."""
    if look.targets is None:
        return None
    ignored = look.result.ignore_index
    return kernel_alignment(look.kernel, look.targets, ignore_index=ignored)


@Key(
    name="kernel",
    kind="figure",
    category="Kernel",
    definition="cosines Kₙₘ / √(Kₙₙ Kₘₘ) of the trace kernel, sorted by class",
    reading="bright blocks on the diagonal: samples of a class are learned together",
)
def kernel(look: KernelLook) -> Draw:
    """A heatmap."""
    found, targets, title = look.kernel, look.targets, f"NTK at step {look.step}"
    return lambda: draw_kernel(trace_kernel(found), targets, title)
