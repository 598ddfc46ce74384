"""The statistics as pure functions of tensors, without state and without Lightning."""

from lightning_vivit.metrics.functional.directions import (
    direction_statistics,
    gradient_share,
    newton_steps,
    signal_to_noise,
)
from lightning_vivit.metrics.functional.gradients import (
    gradient_noise,
    gradient_noise_scale,
    gradient_signal,
    gradient_statistics,
)
from lightning_vivit.metrics.functional.kernel import (
    flatten_kernel,
    kernel_alignment,
    kernel_distance,
    kernel_eigenvalues,
    kernel_statistics,
    trace_kernel,
)
from lightning_vivit.metrics.functional.spectrum import (
    condition_number,
    effective_rank,
    spectrum_statistics,
    stability_limit,
    stability_ratio,
    subspace_overlap,
)

__all__ = [
    "condition_number",
    "direction_statistics",
    "effective_rank",
    "flatten_kernel",
    "gradient_noise",
    "gradient_noise_scale",
    "gradient_share",
    "gradient_signal",
    "gradient_statistics",
    "kernel_alignment",
    "kernel_distance",
    "kernel_eigenvalues",
    "kernel_statistics",
    "newton_steps",
    "signal_to_noise",
    "spectrum_statistics",
    "stability_limit",
    "stability_ratio",
    "subspace_overlap",
    "trace_kernel",
]
