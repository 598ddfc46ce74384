"""Metric of the samples' gradients: size, noise and signal."""

from __future__ import annotations

from torch import Tensor

from lightning_vivit.metrics.diagnostic import MeanOfUpdates
from lightning_vivit.metrics.functional.gradients import gradient_statistics, noise_over_signal


class GradientStatistics(MeanOfUpdates):
    """Norms of the samples' gradients, and the gradient noise scale.

    Calling the metric gives the values of that call; `compute` gives the means over the updates
    since the last reset and over all processes, and the noise scale of these means, as its authors
    advise: a quotient of means is less biased than a mean of quotients. Scalars in float64:

    - `sample_norm`: mean norm of the samples' gradients.
    - `noise`: see `gradient_noise`.
    - `signal`: see `gradient_signal`.
    - `noise_scale`: see `gradient_noise_scale`.

    Example:
        >>> import torch
        >>> from lightning_vivit.metrics import GradientStatistics
        >>> metric = GradientStatistics()
        >>> gradients = torch.tensor([[3.0, 1.0], [3.0, -1.0]])
        >>> norms, mean = gradients.norm(dim=1), gradients.mean(dim=0)
        >>> values = metric(norms, mean.square().sum())
        >>> {name: round(value.item(), 3) for name, value in values.items()}
        {'sample_norm': 3.162, 'noise': 2.0, 'signal': 8.0, 'noise_scale': 0.25}
    """

    required = ("sample_norm", "noise", "signal")

    def update(self, sample_norms: Tensor, mean_norm_squared: float | Tensor) -> None:
        """Add the gradients of one batch.

        Args:
            sample_norms: [N] norms of the gradients of the samples' losses.
            mean_norm_squared: Squared norm of the mean of these gradients.
        """
        values = gradient_statistics(sample_norms, mean_norm_squared)
        self._record({name: values[name] for name in self.required})
        self._forward_cache = values

    def compute(self) -> dict[str, Tensor]:
        """Means over the updates since the last reset, and the noise scale of the means.

        Returns:
            Name -> scalar, in float64.
        """
        means = super().compute()
        return {**means, "noise_scale": noise_over_signal(means["noise"], means["signal"])}
