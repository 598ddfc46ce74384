"""Metric of the samples' slopes and curvatures along the leading directions."""

from __future__ import annotations

from torch import Tensor

from lightning_vivit.metrics.diagnostic import MeanOfUpdates
from lightning_vivit.metrics.functional.directions import direction_statistics


class DirectionStatistics(MeanOfUpdates):
    """Signal, noise and best step along each leading direction.

    Calling the metric gives the values of that call; `compute` gives their means over the updates
    since the last reset and over all processes. Values are in float64:

    - `gradient_share`: scalar, see `gradient_share`.
    - `gamma_mean`, `lambda_mean`: [K] means over the samples.
    - `gamma_snr`, `lambda_snr`: [K], see `signal_to_noise`.
    - `newton_step`: [K], see `newton_steps`.

    A direction is defined up to its sign, which is free to flip from one step to the next. Here
    each is taken to point uphill: `gamma_mean` is not negative, `newton_step` is not positive.

    Examples:
        >>> import torch
        >>> from lightning_vivit.metrics import DirectionStatistics
        >>> metric = DirectionStatistics()
        >>> gammas, lambdas = torch.tensor([[-1.0], [-3.0]]), torch.tensor([[4.0], [4.0]])
        >>> values = metric(gammas, lambdas, scale=0.5, gradient_norm_squared=8.0)
        >>> values["gradient_share"].item(), values["gamma_mean"].item()
        (0.5, 2.0)
        >>> values["newton_step"].item()
        -0.5
    """

    required = (
        "gradient_share",
        "gamma_mean",
        "gamma_snr",
        "lambda_mean",
        "lambda_snr",
        "newton_step",
    )

    def update(
        self,
        gammas: Tensor,
        lambdas: Tensor,
        scale: float | Tensor,
        gradient_norm_squared: float | Tensor,
        damping: float | Tensor = 0.0,
        gradient_scale: float | Tensor | None = None,
    ) -> None:
        """Add the directional derivatives of one batch.

        Args:
            gammas: [N, K] slopes of the samples.
            lambdas: [N, K] curvatures of the samples; [N', K] with a `gradient_scale`.
            scale: Loss = scale * sum of the samples' losses.
            gradient_norm_squared: ||g||^2 of the gradient of the loss over the same parameters.
            damping: Damping of the Newton steps, one number or [K].
            gradient_scale: Scale of the slopes if it is another, because slopes and curvatures are
                of different samples.
        """
        self._record(
            direction_statistics(
                gammas, lambdas, scale, gradient_norm_squared, damping, gradient_scale
            )
        )
