"""Monitor of the empirical neural tangent kernel (NTK)."""

from __future__ import annotations

from typing import Literal

from typing_extensions import Unpack

from lightning_vivit.callbacks.options import Data, OptionsButData, lists_options
from lightning_vivit.callbacks.statistics_monitor import StatisticsMonitor
from lightning_vivit.errors import require_choice
from lightning_vivit.evaluation.interface import Result
from lightning_vivit.kernel.modes import OutputKernel
from lightning_vivit.statistics import SECTIONS, Memory
from lightning_vivit.statistics.ntk.kernel_look import KernelLook


class NTKMonitor(StatisticsMonitor):
    """Logs spectrum, label alignment and drift of the NTK.

    Under `ntk/` there are trace, leading eigenvalues, condition number and effective rank of the
    kernel, its alignment with the labels, and its distance to the first and to the previous kernel.
    Kernels compare on the same samples only: not with data="batch". docs/keys.md tells of every
    key: definition, source, how to read it, cost; `lightning_vivit.statistics.SECTIONS` is its
    table.

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
        **options: Those of all monitors, see `MonitorOptions`.
    """

    table = SECTIONS["ntk"]
    section = table.name

    @lists_options
    def __init__(
        self,
        k: int = 10,
        mode: Literal["full", "trace", "pseudo", "projected"] = "full",
        data: Data = "train",
        outputs: list[int] | None = None,
        projections: int = 10,
        **options: Unpack[OptionsButData],
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

    def options(self) -> dict[str, object]:
        """The options that tell this monitor from others of its class."""
        alone = None if self.output_kernel is None else repr(self.output_kernel)
        return {**super().options(), "mode": self.mode, "alone": alone}

    @property
    def fixed_samples(self) -> bool:
        """Whether all steps look at the same samples, so that kernels can be compared."""
        return self.source.data != "batch"

    def look(self, evaluation: Result, group: str, memory: Memory) -> KernelLook:
        """The kernel of one group."""
        found = KernelLook(evaluation, group, self.step, memory, self.k, self.mode)
        found.k = self.limit_k(found.size)
        return found
