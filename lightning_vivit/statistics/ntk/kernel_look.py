"""What the statistics of the neural tangent kernel share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from lightning_vivit.metrics.functional import kernel_eigenvalues
from lightning_vivit.metrics.functional.kernel import kernel_distances
from lightning_vivit.statistics.look import Look


@dataclass
class KernelLook(Look):
    """The kernel of one parameter group.

    Attributes:
        mode: Of the kernel.
    """

    mode: str = "full"

    @cached_property
    def kernel(self) -> Tensor:
        """[N, N, C, C] in mode full, else [N, N]."""
        return self.result.ntk(self.group, self.mode)

    @property
    def size(self) -> int:
        """How many eigenvalues it has."""
        return self.kernel.shape[0] * (self.kernel.shape[2] if self.mode == "full" else 1)

    @cached_property
    def eigenvalues(self) -> Tensor:
        """All, ascending, float64."""
        return kernel_eigenvalues(self.kernel)

    @cached_property
    def targets(self) -> Tensor | None:
        """One row for each sample."""
        return self.result.sample_targets()

    @cached_property
    def distances(self) -> Tensor:
        """To the first and to the previous kernel, [2]; [1] at the first step. Notes this one."""
        kept = self.memory.tensors
        references = [kept["first"], kept["previous"]] if kept else [self.kernel]
        kept |= {"first": references[0], "previous": self.kernel}
        return kernel_distances(self.kernel, references)
