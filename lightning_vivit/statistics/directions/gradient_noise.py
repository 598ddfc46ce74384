"""Norms, variance and noise scale of the gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_vivit.machine.numbers import double
from lightning_vivit.metrics.functional import gradient_noise_scale
from lightning_vivit.problem.groups import layers_of
from lightning_vivit.statistics.directions.direction_look import DirectionLook
from lightning_vivit.statistics.key import Key


@Key(
    name="gradient_norm",
    category="Gradients",
    chart="Gradient norm{mark}",
    definition="‖g‖; with `gradients=True`, as the next four",
    range="≥ 0",
    reading="how steep the loss is; 0 where it is stationary",
    cost="none",
    option="gradients",
)
def gradient_norm(look: DirectionLook) -> Tensor:
    """Of the loss."""
    return look.gradient_norm_squared.sqrt()


@Key(
    name="sample_gradient_norm",
    category="Gradients",
    chart="Gradient norm{mark}",
    definition="meanₙ ‖gₙ‖",
    range="≥ 0",
    reading="much larger than ‖g‖: the samples pull apart",
    cost="none",
    detail="high",
    option="gradients",
)
def sample_gradient_norm(look: DirectionLook) -> Tensor:
    """Mean over the samples."""
    return double(look.sample_norms).mean()


@Key(
    name="gradient_variance",
    category="Gradients",
    chart="Variance of the per-sample gradients{mark}",
    definition="meanₙ ‖gₙ − ḡ‖², ḡ = meanₙ gₙ",
    range="≥ 0",
    reading="total noise of one sample's gradient",
    cost="none",
    detail="high",
    option="gradients",
)
def gradient_variance(look: DirectionLook) -> Tensor:
    """In all directions together."""
    return look.result.gradient_variance(look.group)


@Key(
    name="noise_scale",
    category="Gradients",
    chart="Gradient noise scale{mark}",
    unit="samples",
    definition="tr Σ / |g|², unbiased: tr Σ = N/(N−1) meanₙ ‖gₙ − ḡ‖², |g|² = ‖ḡ‖² − tr Σ / N; "
    "left out if |g|² ≤ 0",
    source="[McCandlish et al. 2018](https://arxiv.org/abs/1812.06162), eq. 2.9, A.1",
    range="≥ 0",
    reading="batch size at which noise equals signal: with far smaller batches a larger one pays "
    "off. Rough above N; missing points mean about N or more",
    cost="none",
    option="gradients",
    late=True,
)
def noise_scale(look: DirectionLook) -> Tensor | None:
    """Only where the samples show a signal above chance."""
    scale = look.result.scale
    assert scale is not None  # there are directions, so there is a loss
    mean_squared = look.gradient_norm_squared / (scale * look.result.num_samples) ** 2
    found = gradient_noise_scale(look.sample_norms, mean_squared)
    return found if bool(found.isfinite()) else None


@Key(
    name="layer_gradient_norm/<layer>",
    category="Gradients",
    chart="Gradient norm of each layer{mark}",
    definition="norm of g in each module that has parameters of its own, if the parameter group "
    "has several",
    range="≥ 0",
    reading="falling towards the input: vanishing gradients; one layer far above the others: its "
    "learning rate",
    cost="one backward pass",
    detail="high",
    option="gradients",
)
def layer_gradient_norm(look: DirectionLook) -> dict[str, Tensor] | None:
    """Layer -> norm."""
    layers = layers_of(look.result.groups[look.group])
    if len(layers) < 2:
        return None
    gradient = look.result.gradient(look.group)
    return {
        layer: torch.linalg.vector_norm(
            torch.stack([torch.linalg.vector_norm(gradient[name]) for name in names])
        )
        for layer, names in layers.items()
    }


@Key(
    name="sample_gradient_norms",
    kind="histogram",
    category="Gradients",
    definition="‖gₙ‖, with `gradients=True`",
    reading="outliers: hard or wrongly labelled samples",
    option="gradients",
)
def sample_gradient_norms(look: DirectionLook) -> Tensor:
    """[N]."""
    return look.sample_norms
