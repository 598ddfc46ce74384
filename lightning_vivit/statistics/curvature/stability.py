"""The learning rate against its limit."""

from __future__ import annotations

from torch import Tensor

from lightning_vivit.metrics.functional import stability_ratio
from lightning_vivit.statistics.curvature.curvature_look import CurvatureLook
from lightning_vivit.statistics.key import Key, Verdict

COHEN = "[Cohen et al. 2021](https://arxiv.org/abs/2103.00065)"


@Key(
    name="sharpness_lr",
    category="Curvature",
    chart="Learning rate x sharpness / limit, stable below 1{mark}",
    definition="η μ₁ / (2 (1 + β)), η the learning rate, β the momentum",
    source=COHEN,
    range="{range}, limit 1",
    reading="above 1 a step along e₁ diverges on a quadratic: lower the learning rate; full-batch "
    "training hovers about 1. Adam's rescaling is left out",
    cost="spectrum",
    detail="low",
    verdict=Verdict(1.0, "the learning rate is too large for the curvature", COHEN),
    needs=("is_curvature",),
)
def sharpness_lr(look: CurvatureLook) -> Tensor | None:
    """Only if the optimizer has a learning rate."""
    return None if look.rate is None else stability_ratio(look.top[0], *look.rate)
