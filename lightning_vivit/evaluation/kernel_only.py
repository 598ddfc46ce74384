"""The kernel of a batch in one mode, for those who need nothing else of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from lightning_vivit.errors import OptionError
from lightning_vivit.evaluation.exact import Evaluation
from lightning_vivit.evaluation.solved import Block
from lightning_vivit.kernel.compute import Kernels
from lightning_vivit.kernel.modes import KernelEstimate, OutputKernel
from lightning_vivit.problem.problem import Recording
from lightning_vivit.samples.layout import SampleLayout


class OutputEvaluation(Evaluation):
    """An `Evaluation` that knows its kernel in one mode, and no spectrum of the GGN.

    Attributes:
        wanted: Mode and outputs.
    """

    def __init__(
        self,
        recording: Recording,
        layout: SampleLayout,
        groups: Mapping[str, list[str]],
        kernels: Kernels,
        unused: Sequence[str],
        wanted: OutputKernel,
        found: Mapping[str, Tensor | KernelEstimate],
    ) -> None:
        """Keep the kernels; use `evaluate_outputs` to make one."""
        blocks = {group: Block(names, None, None) for group, names in groups.items()}
        super().__init__(recording, layout, None, None, None, 0, blocks, kernels, unused, None)
        self.wanted = wanted
        self._found = dict(found)

    def ntk(self, group: str = "all", mode: str = "full") -> Tensor:
        """The kernel of a group.

        Args:
            group: Parameter group.
            mode: That of `wanted`.

        Returns:
            The kernel in the layout of the mode; the estimate's mean for mode ``projected``.

        Raises:
            OptionError: Unknown group or another mode.
        """
        if mode != self.wanted.mode:
            raise OptionError(f"This evaluation has the mode {self.wanted.mode!r}, got {mode!r}.")
        self._grams.block(group)
        found = self._found[group]
        return found.kernel if isinstance(found, KernelEstimate) else found

    def standard_error(self, group: str = "all") -> Tensor | None:
        """Standard error of the kernel's entries, [N, N]; None if they are exact."""
        self._grams.block(group)
        found = self._found[group]
        return found.standard_error if isinstance(found, KernelEstimate) else None
