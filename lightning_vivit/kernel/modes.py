"""Tangent kernels of networks with many outputs: which directions in output space are compared.

The kernel of two samples is a matrix K = J_n J_m^T with a row for each output. All that a summary
of it needs is the products with some directions v in output space, v^T K v, and each direction
costs one backward pass. With C outputs:

| mode | directions | result |
|---|---|---|
| full | all C units | [N1, N2, C, C] |
| diagonal | all C units | [N1, N2, C] |
| trace | all C units | [N1, N2], the sum over equal outputs |
| projected | R random signs | [N1, N2], the trace on average, with its standard error |
| pseudo | one, (1, ..., 1)/sqrt(C) | [N1, N2], about trace / C for wide networks |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_vivit.errors import OptionError
from lightning_vivit.jacobian.columns import shared_columns
from lightning_vivit.samples.layout import SampleLayout

KERNEL_MODES = ("full", "trace", "diagonal", "pseudo", "projected")
_CONTRACTIONS = {"pseudo": "trace", "projected": "diagonal"}


class KernelEstimate(NamedTuple):
    """A kernel that was estimated from random directions.

    Attributes:
        kernel: [N1, N2], right on average.
        standard_error: [N1, N2], of each entry, from the spread over the directions.
    """

    kernel: Tensor
    standard_error: Tensor


@dataclass(frozen=True)
class OutputKernel:
    """What is wanted of the kernel's output axes.

    Attributes:
        mode: One of `KERNEL_MODES`.
        outputs: Indices of the outputs of a sample that count; None for all.
        projections: Number R of random directions of mode ``projected``.
        seed: Of the random directions. They are the same for all samples and in all calls.
    """

    mode: str = "full"
    outputs: tuple[int, ...] | None = None
    projections: int = 10
    seed: int = 0

    @classmethod
    def of(
        cls,
        mode: str,
        outputs: Sequence[int] | None = None,
        projections: int = 10,
        seed: int = 0,
    ) -> OutputKernel:
        """Check the options.

        Args:
            mode: One of `KERNEL_MODES`.
            outputs: Indices of outputs, each at most once; None for all.
            projections: At least 2.
            seed: Of the random directions.

        Returns:
            The options.

        Raises:
            OptionError: An option has an impossible value.
        """
        if mode not in KERNEL_MODES:
            raise OptionError(f"Unknown mode {mode!r}. Supported: {', '.join(KERNEL_MODES)}.")
        if not isinstance(projections, int) or isinstance(projections, bool) or projections < 2:
            raise OptionError(
                f"Got projections={projections!r}. Supported: an integer from 2 on, because the "
                "standard error is that of a spread."
            )
        kept = None if outputs is None else tuple(int(index) for index in outputs)
        if kept is not None and (not kept or len(set(kept)) < len(kept) or min(kept) < 0):
            raise OptionError(
                f"Got outputs={list(kept)}. Supported: at least one index of an output, counted "
                "from 0, each at most once; or None for all outputs."
            )
        return cls(mode, kept, projections, seed)

    @property
    def contraction(self) -> str:
        """How factors of the columns are multiplied: ``full``, ``trace`` or ``diagonal``."""
        return _CONTRACTIONS.get(self.mode, self.mode)

    def columns(self, outputs: Tensor, layout: SampleLayout) -> Tensor:
        """The cotangents that are backpropagated.

        Args:
            outputs: The outputs.
            layout: Samples and positions of the outputs.

        Returns:
            [D', *outputs shape]; D' is the number of chosen outputs, 1 (``pseudo``) or
            `projections` (``projected``).

        Raises:
            OptionError: A chosen output does not exist.
        """
        depth = outputs.numel() // layout.num_samples
        kept = tuple(range(depth)) if self.outputs is None else self.outputs
        if max(kept) >= depth:
            raise OptionError(
                f"Got the output {max(kept)}, but a sample has {depth} outputs. Choose indices "
                f"from 0 to {depth - 1}; all output axes of a sample count as one."
            )
        if self.mode == "pseudo":
            chosen = torch.full((len(kept), 1), len(kept) ** -0.5, dtype=torch.float64)
        elif self.mode == "projected":
            generator = torch.Generator().manual_seed(self.seed)
            signs = torch.randint(0, 2, (len(kept), self.projections), generator=generator)
            chosen = signs.double() * 2 - 1
        else:
            chosen = torch.eye(len(kept), dtype=torch.float64)
        directions = chosen.new_zeros(depth, chosen.shape[1])
        directions[list(kept)] = chosen
        return shared_columns(outputs, layout, directions.to(outputs.device, outputs.dtype))

    def finish(self, kernel: Tensor) -> Tensor | KernelEstimate:
        """The result in its public layout.

        Args:
            kernel: In the layout of `contraction`: [N, C, M, D], [N, M] or [N, M, R].

        Returns:
            [N, M, C, D], [N, M] or [N, M, C]; for mode ``projected`` the estimate.
        """
        if self.mode == "full":
            return kernel.permute(0, 2, 1, 3)
        if self.mode != "projected":
            return kernel
        count = kernel.shape[2]
        return KernelEstimate(kernel.mean(2), kernel.std(2) / count**0.5)
