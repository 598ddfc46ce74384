"""Signal and noise of the samples' gradients, from their norms alone.

Gradients here are those of the samples' losses l_n; their mean is the gradient of a mean loss.
Everything is computed and returned in float64, whatever the dtype of the input.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_vivit.machine.numbers import double
from lightning_vivit.metrics.functional.checks import floats, number


def gradient_noise(sample_norms: Tensor, mean_norm_squared: float | Tensor) -> Tensor:
    """Total variance of the samples' gradients, tr Sigma, unbiased.

    It is N / (N - 1) (mean_n |g_n|^2 - |mean_n g_n|^2).

    Args:
        sample_norms: [N] norms |g_n| of the samples' gradients.
        mean_norm_squared: |mean_n g_n|^2 of the same samples.

    Returns:
        A scalar, NaN for a single sample.
    """
    count, second, squared = _moments(sample_norms, mean_norm_squared)
    if count == 1:
        return torch.full_like(second, torch.nan)
    return (second - squared).clamp_min(0.0) * count / (count - 1)


def gradient_signal(sample_norms: Tensor, mean_norm_squared: float | Tensor) -> Tensor:
    """Squared norm of the expected gradient, unbiased (McCandlish et al., 2018, appendix A.1).

    The mean over N samples has a squared norm that is too large by tr Sigma / N on average; this
    takes it off: (N |mean_n g_n|^2 - mean_n |g_n|^2) / (N - 1).

    Args:
        sample_norms: [N] norms |g_n| of the samples' gradients.
        mean_norm_squared: |mean_n g_n|^2 of the same samples.

    Returns:
        A scalar, negative if there is less signal than chance would give; NaN for a single sample.
    """
    count, second, squared = _moments(sample_norms, mean_norm_squared)
    if count == 1:
        return torch.full_like(second, torch.nan)
    return (count * squared - second) / (count - 1)


def gradient_noise_scale(sample_norms: Tensor, mean_norm_squared: float | Tensor) -> Tensor:
    """Simple noise scale tr Sigma / |g|^2 (McCandlish et al., 2018, arXiv:1812.06162, eq. 2.9).

    It is the batch size at which noise and signal of a step are equally large: with much smaller
    batches, twice the batch halves the number of steps; with much larger ones it gains little.

    Args:
        sample_norms: [N] norms |g_n| of the samples' gradients.
        mean_norm_squared: |mean_n g_n|^2 of the same samples.

    Returns:
        A scalar in samples: 0 if all gradients agree, infinite if the samples show no signal (it
        may then be any number not much below N), NaN for a single sample or without gradients.
    """
    noise = gradient_noise(sample_norms, mean_norm_squared)
    return noise_over_signal(noise, gradient_signal(sample_norms, mean_norm_squared))


def gradient_statistics(
    sample_norms: Tensor, mean_norm_squared: float | Tensor
) -> dict[str, Tensor]:
    """The statistics of `GradientStatistics`.

    Args:
        sample_norms: [N] norms of the gradients of the samples' losses.
        mean_norm_squared: Squared norm of the mean of these gradients.

    Returns:
        Name -> scalar: `sample_norm`, `noise`, `signal` and `noise_scale`.
    """
    noise = gradient_noise(sample_norms, mean_norm_squared)
    signal = gradient_signal(sample_norms, mean_norm_squared)
    return {
        "sample_norm": double(sample_norms).mean(),
        "noise": noise,
        "signal": signal,
        "noise_scale": noise_over_signal(noise, signal),
    }


def noise_over_signal(noise: Tensor, signal: Tensor) -> Tensor:
    """Their quotient, infinite without a positive signal and NaN without either.

    Args:
        noise: Total variance, scalar.
        signal: Squared norm of the expected gradient, scalar.

    Returns:
        A scalar.
    """
    quotient = torch.where(signal > 0, noise / signal, torch.inf)
    unknown = noise.isnan() | ((noise == 0) & (signal <= 0))
    return torch.where(unknown, torch.nan, quotient)


def _moments(sample_norms: Tensor, mean_norm_squared: float | Tensor) -> tuple[int, Tensor, Tensor]:
    """N, the mean of |g_n|^2, and |mean g_n|^2, which cannot be larger."""
    norms = double(floats("sample_norms", sample_norms, "[N]", (1,)))
    second = norms.square().mean()
    squared = number("mean_norm_squared", mean_norm_squared, lowest=0.0).to(second.device)
    return norms.numel(), second, torch.minimum(squared, second)
