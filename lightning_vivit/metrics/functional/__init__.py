"""The statistics as pure functions of tensors, without state and without Lightning."""

from lightning_vivit.metrics.functional.directions import (
    gradient_share,
    newton_steps,
    signal_to_noise,
)
from lightning_vivit.metrics.functional.gradients import (
    gradient_noise,
    gradient_noise_scale,
    gradient_signal,
)
from lightning_vivit.metrics.functional.kernel import (
    flatten_kernel,
    kernel_alignment,
    kernel_distance,
    kernel_eigenvalues,
    trace_kernel,
)
from lightning_vivit.metrics.functional.spectrum import (
    condition_number,
    effective_rank,
    stability_limit,
    stability_ratio,
    subspace_overlap,
)

__all__ = [
    "condition_number",
    "effective_rank",
    "flatten_kernel",
    "gradient_noise",
    "gradient_noise_scale",
    "gradient_share",
    "gradient_signal",
    "kernel_alignment",
    "kernel_distance",
    "kernel_eigenvalues",
    "newton_steps",
    "signal_to_noise",
    "stability_limit",
    "stability_ratio",
    "subspace_overlap",
    "trace_kernel",
]
