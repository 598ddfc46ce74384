"""Slopes of the samples along the leading directions."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from lightning_vivit.machine.numbers import double
from lightning_vivit.metrics.functional import gradient_share as share
from lightning_vivit.metrics.functional import signal_to_noise
from lightning_vivit.statistics.directions.direction_look import DirectionLook
from lightning_vivit.statistics.key import Key

VIVIT = "[ViViT](https://arxiv.org/abs/2106.02624)"


@Key(
    name="gradient_share",
    category="Directions",
    chart="Share of the gradient in the top directions{mark}",
    definition="Σᵢ (s Σₙ γₙᵢ)² / ‖g‖², over the k directions",
    source="[Gur-Ari et al. 2018](https://arxiv.org/abs/1812.04754)",
    range="0 to 1",
    reading="near 1: the gradient lies in the stiff directions",
    cost="vectors",
    detail="low",
)
def gradient_share(look: DirectionLook) -> Tensor:
    """Of the squared norm."""
    return share(look.gammas, look.found.gradient_scale, look.gradient_norm_squared)


@Key(
    name="gamma_mean_i",
    category="Directions",
    chart="Mean slope{mark}",
    definition="mean over n of γₙᵢ",
    source=VIVIT,
    range="≥ 0",
    reading="slope along direction i; near 0: this direction is at its minimum",
    cost="vectors",
    detail="high",
)
def gamma_mean(look: DirectionLook) -> Tensor:
    """[K]."""
    return double(look.gammas).mean(dim=0)


@Key(
    name="gamma_snr_i",
    category="Directions",
    chart="Signal to noise of the slopes, per sample{mark}",
    definition="(meanₙ γₙᵢ)² / varₙ γₙᵢ",
    source=VIVIT,
    range="≥ 0",
    reading="of one sample; a batch of B has B times as much. Below 1/B the batch does not know "
    "the slope's sign",
    cost="vectors",
    detail="low",
)
def gamma_snr(look: DirectionLook) -> Tensor:
    """[K]."""
    return signal_to_noise(look.gammas)


@Key(
    name="gamma_i",
    kind="histogram",
    category="Directions",
    definition="γₙᵢ over the samples",
    reading="wide around zero: noise",
)
def gamma(look: DirectionLook) -> Iterable[Tensor]:
    """K times [N]."""
    return look.gammas.T


@Key(name="gammas", kind="array", category="Directions", definition="γₙᵢ, [N, K]")
def gammas(look: DirectionLook) -> Tensor:
    """[N, K]."""
    return look.gammas
