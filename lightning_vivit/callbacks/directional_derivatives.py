"""Monitor of every sample's slope and curvature along the leading eigenvectors of the GGN."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from lightning_vivit.callbacks.base import Monitor
from lightning_vivit.errors import OptionError, ProblemError, require_integer
from lightning_vivit.evaluation.interface import Result
from lightning_vivit.figures import draw_directions
from lightning_vivit.loggers import Findings, Panel
from lightning_vivit.metrics.functional import direction_statistics, gradient_statistics
from lightning_vivit.problem.groups import layers_of


class DirectionalDerivativesMonitor(Monitor):
    """Logs signal and noise of slopes and curvatures along the k leading directions of the GGN.

    gamma is a sample's slope along a direction, lambda its curvature. Directions are taken to point
    uphill. Scalars, for directions i = 1 (largest eigenvalue) .. k:

    - `directions/gradient_share`: share of the squared gradient norm in the span of the directions.
    - `directions/gamma_mean_i`, `directions/lambda_mean_i`: means over the samples.
    - `directions/gamma_snr_i`, `directions/lambda_snr_i`: squared mean over variance across the
      samples. Far below 1 / (number of samples) the direction is dominated by noise.
    - `directions/newton_step_i`: -slope / (curvature + damping), the best step along the direction.

    With gradients=True also, at the cost of one backward pass, with g_n a sample's gradient:

    - `directions/gradient_norm`: norm of the loss's gradient.
    - `directions/sample_gradient_norm`: mean norm of the per-sample gradients.
    - `directions/gradient_variance`: total variance of the per-sample gradients.
    - `directions/noise_scale`: simple noise scale tr Sigma / |g|^2 (McCandlish et al., 2018), the
      batch size at which noise and signal of a step are equally large. Left out where the samples
      show no signal above chance; it is then about the number of samples or more.
    - `directions/layer_gradient_norm/<layer>`: norm of the loss's gradient in each layer, if the
      monitor's parameter group has several.

    A direction whose eigenvalue vanishes is not determined by the batch and is left out.

    Histograms: `directions/gamma_i`, `directions/lambda_i`, over the samples; with gradients=True
    also `directions/sample_gradient_norms`. Figure: `directions/samples`, every sample's slope and
    curvature along the leading directions.

    Cost of a monitored step with N samples of C outputs: one forward pass, C backward passes in one
    batch and the contraction to the N C x N C Gram matrix (shared with other monitors of the same
    data and options), its eigenvectors, no work in parameter space. Between monitored steps
    nothing.

    Args:
        k: How many leading directions to look at.
        damping: Added to the curvature in the Newton step.
        gradients: Whether to log norms, variance and noise scale of the gradients too.
        mc_samples: 0 uses the exact loss Hessian; a positive number estimates it with so many
            Monte Carlo columns for each sample, which is cheaper for many outputs.
        method: "gram", "mc", "matrix_free" or "auto", see `GGNSpectrumMonitor`. Matrix-free
            directions are those of eigenpairs with relative residual `tol`, and slopes and
            curvatures cost one Jacobian-vector product for each; gradients=True then costs one
            backward pass for each sample.
        tol: Relative residual of matrix-free eigenpairs.
        microbatch: Samples in memory at once, matrix-free only; None for as many as fit.
        **options: Those of `Monitor`.
    """

    section = "directions"
    panels: tuple[Panel, ...] = (
        Panel("Directions", "Signal to noise of the slopes, per sample", ("gamma_snr_i",)),
        Panel("Directions", "Signal to noise of the curvatures, per sample", ("lambda_snr_i",)),
        Panel("Directions", "Share of the gradient in the top directions", ("gradient_share",)),
        Panel("Directions", "Mean slope", ("gamma_mean_i",)),
        Panel("Directions", "Mean curvature", ("lambda_mean_i",)),
        Panel("Directions", "Newton step", ("newton_step_i",)),
    )
    gradient_panels = (
        Panel("Gradients", "Gradient norm", ("gradient_norm", "sample_gradient_norm")),
        Panel("Gradients", "Gradient noise scale, in samples", ("noise_scale",)),
        Panel("Gradients", "Variance of the per-sample gradients", ("gradient_variance",)),
    )
    layer_panels = (Panel("Gradients", "Gradient norm of each layer", ("layer_gradient_norm/*",)),)

    def __init__(
        self,
        k: int = 10,
        damping: float = 0.0,
        gradients: bool = False,
        mc_samples: int = 0,
        method: Literal["auto", "gram", "mc", "matrix_free"] = "auto",
        tol: float = 1e-2,
        microbatch: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(k=k, **options)
        self.mc_samples = require_integer("mc_samples", mc_samples, lowest=0)
        self.choose_method(method, "ggn", tol, microbatch)
        if isinstance(damping, bool) or not isinstance(damping, (int, float)) or damping < 0:
            raise OptionError(f"damping has to be a number >= 0, got {damping!r}.")
        self.damping = float(damping)
        self.gradients = gradients
        if gradients:
            self.panels += self.gradient_panels
            if self.param_groups not in ("layer", "parameter"):
                self.panels += self.layer_panels

    def options(self) -> dict[str, object]:
        """The options that tell this monitor from others of its class."""
        own = {"damping": self.damping, "gradients": self.gradients, "method": self.method}
        return {**super().options(), **own, "tol": self.tol, "microbatch": self.microbatch}

    def measure(self, evaluation: Result, group: str) -> Findings:
        """Statistics of the determined directions of one group."""
        k = self.limit_k(evaluation.num_directions)
        found = evaluation.directions(group, k)
        determined = ~found.gammas[0].isnan()
        leading = torch.arange(k - 1, -1, -1, device=determined.device)
        leading = leading[determined[leading]]  # largest eigenvalue first
        if leading.numel() == 0:
            raise ProblemError(
                f"All eigenvalues of the GGN in parameter group {group!r} vanish, so no direction "
                "is determined. Look for saturated outputs or unused parameters."
            )
        gammas, lambdas = found.gammas[:, leading], found.lambdas[:, leading]
        values = direction_statistics(
            gammas,
            lambdas,
            found.scale,
            evaluation.gradient_norm_squared(group),
            self.damping,
            gradient_scale=found.gradient_scale,
        )
        scalars: dict[str, float | Tensor] = {"gradient_share": values.pop("gradient_share")}
        for name, each in values.items():
            scalars |= {f"{name}_{i}": value for i, value in enumerate(each, start=1)}
        uphill = torch.where(gammas.sum(0) < 0, -1.0, 1.0)
        histograms = {}
        for i in range(leading.numel()):
            histograms[f"gamma_{i + 1}"] = gammas[:, i] * uphill[i]
            histograms[f"lambda_{i + 1}"] = lambdas[:, i]
        if self.gradients:
            scalars |= _gradient_statistics(evaluation, group)
            histograms["sample_gradient_norms"] = evaluation.gradient_norms(group)
        slopes, title = gammas * uphill, f"Samples at step {self._step}"
        return Findings(
            scalars,
            histograms,
            figures={"samples": lambda: draw_directions(slopes, lambdas, title)},
            arrays={"gammas": slopes, "lambdas": lambdas},  # [N, k]
        )


def _gradient_statistics(evaluation: Result, group: str) -> dict[str, float | Tensor]:
    squared = evaluation.gradient_norm_squared(group)
    assert evaluation.scale is not None  # there are directions, so there is a loss
    mean_squared = squared / (evaluation.scale * evaluation.num_samples) ** 2
    found = gradient_statistics(evaluation.gradient_norms(group), mean_squared)
    scalars: dict[str, float | Tensor] = {
        "gradient_norm": squared.sqrt(),
        "sample_gradient_norm": found["sample_norm"],
        "gradient_variance": evaluation.gradient_variance(group),
    }
    if bool(found["noise_scale"].isfinite()):
        scalars["noise_scale"] = found["noise_scale"]
    layers = layers_of(evaluation.groups[group])
    if len(layers) > 1:
        gradient = evaluation.gradient(group)
        for layer, names in layers.items():
            parts = torch.stack([torch.linalg.vector_norm(gradient[name]) for name in names])
            scalars[f"layer_gradient_norm/{layer}"] = torch.linalg.vector_norm(parts)
    return scalars
