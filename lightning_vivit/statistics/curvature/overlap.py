"""How the top subspace moves."""

from __future__ import annotations

from torch import Tensor

from lightning_vivit.metrics.functional.spectrum import direction_parts, overlap_of_parts
from lightning_vivit.statistics.curvature.curvature_look import CurvatureLook
from lightning_vivit.statistics.key import Key

PREVIOUS = "previous_"  # begins the names of the previous subspace's parts


@Key(
    name="subspace_overlap",
    category="Directions",
    chart="Overlap with the previous top subspace{mark}",
    definition="‖UᵀV‖² / k, U and V the top k eigenvectors now and before",
    source="[Gur-Ari et al. 2018](https://arxiv.org/abs/1812.04754)",
    range="0 to 1",
    reading='near 1: the stiff directions stay; k/P is chance. With `data="batch"` the two are '
    "of different samples",
    cost="k backward passes, memory for 2k vectors of P; `overlap=False` saves it",
    detail="low",
    option="overlap",
    late=True,
)
def subspace_overlap(look: CurvatureLook) -> Tensor | None:
    """From the second monitored step on."""
    k = look.subspace
    if k == 0:
        return None
    parts = direction_parts(look.result.eigenvectors(look.group, k))
    kept = look.memory.tensors
    past = [kept.pop(name) for name in list(kept) if name.startswith(PREVIOUS)]
    kept.update({f"{PREVIOUS}{i}": part for i, part in enumerate(parts)})
    if [part.shape[1] for part in past] != [part.shape[1] for part in parts]:
        return None  # nothing before, or parameters were frozen or added
    return overlap_of_parts(parts, past)
