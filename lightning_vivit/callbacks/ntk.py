"""Monitor of the empirical neural tangent kernel (NTK)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from lightning_vivit.callbacks.base import Monitor
from lightning_vivit.eigen.dense import numerical_floor
from lightning_vivit.errors import require_choice
from lightning_vivit.evaluation.interface import Result
from lightning_vivit.figures import History, draw_kernel, draw_spectra
from lightning_vivit.kernel.modes import OutputKernel
from lightning_vivit.loggers import Findings, Panel
from lightning_vivit.metrics.functional import kernel_statistics, trace_kernel
from lightning_vivit.metrics.functional.kernel import kernel_distances

_DISTANCES = ("distance_first", "distance_previous")


class NTKMonitor(Monitor):
    """Logs spectrum, label alignment and drift of the NTK.

    Scalars:

    - `ntk/trace`: sum of the kernel's eigenvalues.
    - `ntk/eigenvalue_1` .. `ntk/eigenvalue_k`: the largest eigenvalues, 1 is the largest.
    - `ntk/condition_number`: the largest eigenvalue over the smallest one above rounding.
    - `ntk/effective_rank`: exponential of the entropy of the normalised eigenvalues.
    - `ntk/alignment`: centred alignment with the kernel of the labels, 1 is perfect. Only if the
      loss has a target tensor.
    - `ntk/distance_first`, `ntk/distance_previous`: 1 - <K, K'> / (||K|| ||K'||) to the kernel of
      the first and of the previous monitored step. Kernels compare on the same samples only: not
      with data="batch"; the distance to the previous one from the second monitored step on.

    Histogram: `ntk/eigenvalues_log10`, of the eigenvalues above rounding. Figures: `ntk/kernel`,
    cosines between the samples sorted by class; `ntk/spectrum`, eigenvalue against index at up to
    32 steps.

    - `ntk/relative_error`: norm of the kernel's standard errors over that of the kernel, with
      mode="projected".

    Cost of a monitored step with N samples of C outputs: one forward pass, C backward passes in one
    batch and the contraction to the kernel (shared with other monitors of the same data and
    options); eigenvalues of an N C x N C matrix, in the other modes of an N x N matrix; memory for
    two kernels. Between monitored steps nothing.

    For many outputs choose mode="pseudo" (one backward pass), mode="projected" (one for each
    projection) or some `outputs`: the kernel is then computed for this monitor alone, with no more
    backward passes than it needs.

    Args:
        k: How many leading eigenvalues to log.
        mode: "full" compares all outputs of all samples, "trace" sums over equal outputs,
            "pseudo" takes the sum of the outputs over sqrt(C), which is near "trace" / C for wide
            networks, and "projected" estimates "trace" from random directions in output space.
        outputs: Indices of the outputs that count, such as some classes; None for all.
        projections: Number of random directions of mode="projected". They are the same at all
            steps and seeded by `seed`.
        data: "train" or "val" looks at a fixed probe batch drawn from that loader's data set,
            "batch" at the current training batch.
        **options: Those of `Monitor`.
    """

    section = "ntk"
    panels = (
        Panel("Kernel", "Alignment with the labels", ("alignment",)),
        Panel("Kernel", "Distance to the first and the previous kernel", _DISTANCES),
        Panel("Kernel", "Condition number of the NTK", ("condition_number",)),
        Panel("Kernel", "Effective rank of the NTK", ("effective_rank",)),
        Panel("Kernel", "Leading eigenvalues of the NTK", ("eigenvalue_i",)),
        Panel("Kernel", "Trace of the NTK", ("trace",)),
    )

    def __init__(
        self,
        k: int = 10,
        mode: Literal["full", "trace", "pseudo", "projected"] = "full",
        data: Literal["batch", "train", "val"] = "train",
        outputs: list[int] | None = None,
        projections: int = 10,
        **options: Any,
    ) -> None:
        if data == "train" and options.get("probe") is not None:
            data = "batch"  # a given probe replaces the default
        super().__init__(k=k, data=data, **options)
        require_choice("mode", mode, ("full", "trace", "pseudo", "projected"))
        self.mode = mode
        wanted = OutputKernel.of(mode, outputs, projections, self.source.seed)
        alone = outputs is not None or mode in ("pseudo", "projected")
        self.output_kernel = wanted if alone else None
        self.needs_kernel = not alone
        self._past: dict[str, dict[str, Tensor]] = {}

    def options(self) -> dict[str, object]:
        """The options that tell this monitor from others of its class."""
        alone = None if self.output_kernel is None else repr(self.output_kernel)
        return {**super().options(), "mode": self.mode, "alone": alone}

    def forget(self) -> None:
        """Forget the first and the previous kernels, and the steps of the figures."""
        self._past = {}
        self._histories: dict[str, History] = {}

    def measure(self, evaluation: Result, group: str) -> Findings:
        """Spectrum, alignment and drift of one group's kernel."""
        kernel = evaluation.ntk(group, self.mode)
        size = kernel.shape[0] * (kernel.shape[2] if self.mode == "full" else 1)
        k = self.limit_k(size)
        targets = evaluation.sample_targets()
        found = kernel_statistics(kernel, targets, k=size, ignore_index=evaluation.ignore_index)
        eigenvalues = found["top_eigenvalues"]  # all of them
        scalars: dict[str, float | Tensor] = {"trace": found["trace"]}
        scalars |= {f"eigenvalue_{i}": value for i, value in enumerate(eigenvalues.flip(0)[:k], 1)}
        for name in ("condition_number", "effective_rank", "alignment"):
            if name in found:
                scalars[name] = found[name]
        error = evaluation.ntk_standard_error(group)
        if error is not None:
            scalars["relative_error"] = error.norm() / kernel.norm()
        if self.source.data != "batch":
            scalars |= self._compare(kernel, group)
        floor = numerical_floor(eigenvalues, kernel.dtype)
        histograms = {"eigenvalues_log10": eigenvalues[eigenvalues > floor].log10()}
        history = self._histories.setdefault(group, History())
        history.add(self._step, eigenvalues)
        title = f"NTK at step {self._step}"
        return Findings(
            scalars,
            histograms,
            figures={
                "kernel": lambda: draw_kernel(trace_kernel(kernel), targets, title),
                "spectrum": lambda: draw_spectra(history.entries(), "NTK eigenvalues"),
            },
            arrays={"kernel": kernel, "eigenvalues": eigenvalues},
        )

    def _compare(self, kernel: Tensor, group: str) -> dict[str, Tensor]:
        past = self._past.get(group)
        references = [kernel] if past is None else [past["first"], past["previous"]]
        distances = kernel_distances(kernel, references)
        self._past[group] = {"first": references[0], "previous": kernel}  # nobody writes to them
        return dict(zip(_DISTANCES, distances, strict=False))

    def references(self) -> dict[str, dict[str, Tensor]]:
        """The first and the previous kernels."""
        return self._past

    def set_references(self, references: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take the first and the previous kernels from a checkpoint."""
        self._past = {group: dict(tensors) for group, tensors in references.items()}
