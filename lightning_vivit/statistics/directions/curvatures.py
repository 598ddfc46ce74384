"""Curvatures of the samples along the leading directions, and the steps that they suggest."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from lightning_vivit.figures import draw_directions
from lightning_vivit.machine.numbers import double
from lightning_vivit.metrics.functional import newton_steps, signal_to_noise
from lightning_vivit.statistics.directions.direction_look import DirectionLook
from lightning_vivit.statistics.directions.slopes import VIVIT
from lightning_vivit.statistics.findings import Draw
from lightning_vivit.statistics.key import Key


@Key(
    name="lambda_mean_i",
    category="Directions",
    chart="Mean curvature{mark}",
    definition="mean over n of λₙᵢ",
    source=VIVIT,
    range="≥ 0",
    reading="curvature along direction i; μᵢ for a mean loss",
    cost="vectors",
    detail="high",
)
def lambda_mean(look: DirectionLook) -> Tensor:
    """[K]."""
    return double(look.lambdas).mean(dim=0)


@Key(
    name="lambda_snr_i",
    category="Directions",
    chart="Signal to noise of the curvatures, per sample{mark}",
    definition="(meanₙ λₙᵢ)² / varₙ λₙᵢ",
    source=VIVIT,
    range="≥ 0",
    reading="small: a few samples make the curvature",
    cost="vectors",
)
def lambda_snr(look: DirectionLook) -> Tensor:
    """[K]."""
    return signal_to_noise(look.lambdas)


@Key(
    name="newton_step_i",
    category="Directions",
    chart="Newton step{mark}",
    definition="−s Σₙ γₙᵢ / (s Σₙ λₙᵢ + damping)",
    source=VIVIT,
    range="≤ 0",
    reading="best step along eᵢ; compare with that of SGD, −η s Σₙ γₙᵢ",
    cost="vectors",
    needs=("is_curvature",),
)
def newton_step(look: DirectionLook) -> Tensor:
    """[K]."""
    found = look.found
    return newton_steps(look.gammas, look.lambdas, found.scale, look.damping, found.gradient_scale)


@Key(
    name="lambda_i",
    kind="histogram",
    category="Directions",
    definition="λₙᵢ over the samples",
    reading="a long tail: a few samples make the curvature",
)
def lambda_(look: DirectionLook) -> Iterable[Tensor]:
    """K times [N']."""
    return look.lambdas.T


@Key(
    name="samples",
    kind="figure",
    category="Directions",
    definition="γₙᵢ and λₙᵢ of each sample, with the mean and twice its standard error",
    reading="a bar across zero: the slope's sign is not known",
)
def samples(look: DirectionLook) -> Draw:
    """One point for each sample."""
    gammas, lambdas, title = look.gammas, look.lambdas, f"Samples at step {look.step}"
    return lambda: draw_directions(gammas, lambdas, title)


@Key(name="lambdas", kind="array", category="Directions", definition="λₙᵢ, [N', K]")
def lambdas(look: DirectionLook) -> Tensor:
    """[N', K]."""
    return look.lambdas
