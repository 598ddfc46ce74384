"""Monitor of the empirical neural tangent kernel (NTK)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from lightning_vivit.callbacks.base import Monitor, require_choice
from lightning_vivit.callbacks.session import Found
from lightning_vivit.loggers import Findings
from lightning_vivit.metrics import KernelDrift, KernelStatistics


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

    Histogram: `ntk/eigenvalues_log10`, of the positive eigenvalues.

    Cost of a monitored step with N samples of C outputs: one forward pass, C backward passes in one
    batch and the contraction to the kernel (shared with other monitors of the same data and
    options); eigenvalues of an N C x N C matrix, with mode="trace" of an N x N matrix; memory for
    two kernels. Between monitored steps nothing.

    Args:
        k: How many leading eigenvalues to log.
        mode: "full" compares all outputs of all samples, "trace" sums over the outputs.
        data: "train" or "val" looks at a fixed probe batch drawn from that loader's data set,
            "batch" at the current training batch.
        **options: Those of `Monitor`.
    """

    section = "ntk"
    needs_kernel = True

    def __init__(
        self,
        k: int = 10,
        mode: Literal["full", "trace"] = "full",
        data: Literal["batch", "train", "val"] = "train",
        **options: Any,
    ) -> None:
        if data == "train" and options.get("probe") is not None:
            data = "batch"  # a given probe replaces the default
        super().__init__(k=k, data=data, **options)
        require_choice("mode", mode, ("full", "trace"))
        self.mode = mode
        self._drifts: dict[str, KernelDrift] = {}

    def options(self) -> dict[str, object]:
        """The options that tell this monitor from others of its class."""
        return {**super().options(), "mode": self.mode}

    def forget(self) -> None:
        """Forget the first and the previous kernels."""
        self._drifts = {}

    def measure(self, evaluation: Found, group: str) -> Findings:
        """Spectrum, alignment and drift of one group's kernel."""
        kernel = evaluation.ntk(group, self.mode)
        size = kernel.shape[0] * (kernel.shape[2] if self.mode == "full" else 1)
        k = self.limit_k(size)
        metric = KernelStatistics(k=size, ignore_index=evaluation.ignore_index)
        found = metric(kernel, evaluation.sample_targets())
        eigenvalues = found["top_eigenvalues"]  # all of them
        scalars: dict[str, float | Tensor] = {"trace": found["trace"]}
        scalars |= {f"eigenvalue_{i}": value for i, value in enumerate(eigenvalues.flip(0)[:k], 1)}
        for name in ("condition_number", "effective_rank", "alignment"):
            if name in found:
                scalars[name] = found[name]
        if self.source.data != "batch":
            scalars |= self._compare(kernel, group)
        histograms = {"eigenvalues_log10": eigenvalues[eigenvalues > 0].log10()}
        return Findings(scalars, histograms, arrays={"kernel": kernel, "eigenvalues": eigenvalues})

    def _compare(self, kernel: Tensor, group: str) -> dict[str, Tensor]:
        metric = self._drifts.setdefault(group, KernelDrift())
        known = metric.previous.numel() > 0
        distances = metric(kernel)
        found = {"distance_first": distances["distance_from_first"]}
        if known:
            found["distance_previous"] = distances["distance_from_previous"]
        return found

    def references(self) -> dict[str, dict[str, Tensor]]:
        """The first and the previous kernels."""
        return {
            group: {"first": metric.first, "previous": metric.previous}
            for group, metric in self._drifts.items()
        }

    def set_references(self, references: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take the first and the previous kernels from a checkpoint."""
        for group, tensors in references.items():
            metric = self._drifts[group] = KernelDrift()
            metric.first, metric.previous = tensors["first"], tensors["previous"]
