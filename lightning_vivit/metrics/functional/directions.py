"""Statistics of the samples' slopes (gamma) and curvatures (lambda) along leading directions.

The conventions are those of `directional_derivatives`: gammas and lambdas are [N, K], the gradient
of the loss along direction k is `scale * sum_n gamma_nk` and the curvature is
`scale * sum_n lambda_nk`, so `scale` is 1/N for a mean loss and 1 for a sum. Everything is computed
and returned in float64, whatever the dtype of the input.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_vivit.machine.numbers import double
from lightning_vivit.metrics.functional.checks import floats, number, refusal


def gradient_share(
    gammas: Tensor,
    scale: float | Tensor,
    gradient_norm_squared: float | Tensor,
) -> Tensor:
    """Share of the squared gradient norm that lies in the span of the directions.

    Args:
        gammas: [N, K] slopes of the samples along orthonormal directions.
        scale: Loss = scale * sum of the samples' losses.
        gradient_norm_squared: ||g||^2 of the gradient of the loss over the same parameters.

    Returns:
        A scalar in [0, 1] up to rounding, or NaN if the gradient is zero.
    """
    slopes = _sums(gammas, "gammas", scale)
    total = number("gradient_norm_squared", gradient_norm_squared, lowest=0.0).to(slopes.device)
    return torch.where(total > 0, slopes.square().sum() / total, torch.nan)


def signal_to_noise(values: Tensor) -> Tensor:
    """Squared mean over variance across the samples, for each direction (Dangel et al., 2022).

    The variance is the unbiased one (divided by N - 1). The ratio is that of one sample: a batch of
    N of them has N times as much. It does not change with the sign or the scale of the values.

    Args:
        values: [N, K] slopes or curvatures of the samples.

    Returns:
        [K]; infinite where all samples agree on a nonzero value, NaN where all are zero, and NaN
        for a single sample, whose variance is not known.
    """
    values = double(floats("values", values, "[N, K]", (2,)))
    if values.shape[0] == 1:
        return torch.full_like(values[0], torch.nan)
    return values.mean(dim=0).square() / values.var(dim=0, correction=1)


def newton_steps(
    gammas: Tensor,
    lambdas: Tensor,
    scale: float | Tensor,
    damping: float | Tensor = 0.0,
    gradient_scale: float | Tensor | None = None,
) -> Tensor:
    """Coefficient of the damped Newton step along each direction: -slope / (curvature + damping).

    Args:
        gammas: [N, K] slopes of the samples.
        lambdas: [N', K] curvatures of the samples; N' = N unless `gradient_scale` is given.
        scale: Loss = scale * sum of the samples' losses.
        damping: Not negative; one number, or [K] with one for each direction.
        gradient_scale: Scale of the slopes if it is another, because slopes and curvatures are of
            different samples.

    Returns:
        [K]; infinite or NaN where curvature and damping are both zero.
    """
    slopes = _sums(gammas, "gammas", scale if gradient_scale is None else gradient_scale)
    curvatures = _sums(lambdas, "lambdas", scale).to(slopes.device)
    same_samples = gammas.shape[0] == lambdas.shape[0] or gradient_scale is not None
    if slopes.shape != curvatures.shape or not same_samples:
        raise refusal(
            f"gammas of shape {list(gammas.shape)} and lambdas of shape {list(lambdas.shape)}",
            "the same shape [N, K] for both, other samples only with a gradient_scale",
            "pass slopes and curvatures along the same directions",
        )
    if isinstance(damping, Tensor) and damping.ndim > 0:
        each = double(floats("damping", damping, "[] or [K]", (1,))).to(slopes.device)
        if each.shape != slopes.shape or bool((each < 0).any()):
            raise refusal(
                f"damping of shape {list(damping.shape)} with smallest value {float(each.min()):g}",
                f"one number or shape [{slopes.numel()}], not negative",
                "pass one damping for each direction",
            )
    else:
        each = number("damping", damping, lowest=0.0).to(slopes.device)
    return -slopes / (curvatures + each)


def direction_statistics(
    gammas: Tensor,
    lambdas: Tensor,
    scale: float | Tensor,
    gradient_norm_squared: float | Tensor,
    damping: float | Tensor = 0.0,
    gradient_scale: float | Tensor | None = None,
) -> dict[str, Tensor]:
    """The statistics of `DirectionStatistics`, each direction taken to point uphill.

    Args:
        gammas: [N, K] slopes of the samples.
        lambdas: [N, K] curvatures of the samples; [N', K] with a `gradient_scale`.
        scale: Loss = scale * sum of the samples' losses.
        gradient_norm_squared: ||g||^2 of the gradient of the loss over the same parameters.
        damping: Damping of the Newton steps, one number or [K].
        gradient_scale: Scale of the slopes if it is another, because slopes and curvatures are
            of different samples.

    Returns:
        Name -> `gradient_share` as a scalar, and [K] `gamma_mean`, `gamma_snr`, `lambda_mean`,
        `lambda_snr` and `newton_step`.
    """
    slope_scale = scale if gradient_scale is None else gradient_scale
    steps = newton_steps(gammas, lambdas, scale, damping, gradient_scale)
    share = gradient_share(gammas, slope_scale, gradient_norm_squared)
    mean = double(gammas).mean(dim=0)
    uphill = torch.where(mean < 0, -1.0, 1.0).to(mean)
    return {
        "gradient_share": share,
        "gamma_mean": mean.abs(),
        "gamma_snr": signal_to_noise(gammas),
        "lambda_mean": double(lambdas).mean(dim=0),
        "lambda_snr": signal_to_noise(lambdas),
        "newton_step": uphill * steps,
    }


def _sums(values: Tensor, name: str, scale: float | Tensor) -> Tensor:
    """Scaled sum over the samples of [N, K], as [K]."""
    total = double(floats(name, values, "[N, K]", (2,))).sum(dim=0)
    return number("scale", scale).to(total.device) * total
