"""Jacobian rows of a chunk of samples in factored form, and the kernel of two chunks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn

from lightning_vivit.errors import OptionError, ProblemError
from lightning_vivit.factors import Factor
from lightning_vivit.factors.orders import CHUNK_ENTRIES
from lightning_vivit.jacobian.autograd import AutogradBackend
from lightning_vivit.kernel.contraction import add_kernels
from lightning_vivit.kernel.modes import KernelEstimate, OutputKernel
from lightning_vivit.kernel.plan import Plan
from lightning_vivit.problem.problem import Problem
from lightning_vivit.samples.batch import map_leaves
from lightning_vivit.samples.size import batch_size


@dataclass(frozen=True)
class BlockRows:
    """Factors of the chosen columns of some samples, without a graph.

    Attributes:
        factors: Parameter -> factor.
        num_samples: n.
        num_columns: D', columns of each sample.
        num_outputs: D, outputs of each sample.
        dtype: Of the outputs.
    """

    factors: Mapping[str, Factor]
    num_samples: int
    num_columns: int
    num_outputs: int
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes that the factors keep alive, shared memory counted once."""
        kept = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in self._tensors()}
        return sum(storage.nbytes() for storage in kept.values())

    def _tensors(self) -> Iterable[Tensor]:
        for factor in self.factors.values():
            yield from (value for value in vars(factor).values() if isinstance(value, Tensor))


@dataclass(frozen=True)
class RowMaker:
    """Makes and multiplies rows of one model.

    Attributes:
        model: In the mode in which it is to be evaluated.
        wanted: Mode and outputs.
        groups: Group name -> parameter names.
        entries: Entries of temporary rows that may be held at once.
    """

    model: nn.Module
    wanted: OutputKernel
    groups: Mapping[str, list[str]]
    entries: int = CHUNK_ENTRIES

    def rows(self, inputs: Any) -> BlockRows:
        """BlockRows of a chunk: one forward pass and one backward pass for each column.

        Args:
            inputs: Of the model.

        Returns:
            The rows.

        Raises:
            ProblemError: The outputs do not have a row for each sample.
            InteractionError: Samples influence each other.
        """
        device = next(self.model.parameters()).device
        inputs = move_data_to_device(map_leaves(lambda leaf: leaf, inputs), device)
        names = [name for members in self.groups.values() for name in members]
        count, backend = batch_size(inputs), AutogradBackend()
        with Problem(self.model, None, inputs).recorded(names, backend) as live:
            located = backend.locate(replace(live, sizes=(count,)))
            if located.axis.num_samples != count:
                raise ProblemError(
                    f"{count} samples gave outputs of shape {tuple(live.outputs.shape)}, expected "
                    f"a first axis of {count} or a multiple of it. Check select=, or the model."
                )
            columns = self.wanted.columns(live.outputs, located.layout)
            factors = backend.factors(located, columns, names)
            outputs = live.outputs.detach()
        for factor in factors.values():
            for key, value in vars(factor).items():
                if isinstance(value, Tensor):
                    setattr(factor, key, value.detach())
        return BlockRows(factors, count, columns.shape[0], outputs.numel() // count, outputs.dtype)

    def multiply(self, left: BlockRows, right: BlockRows) -> dict[str, Tensor]:
        """Kernel of two chunks.

        Args:
            left: BlockRows of n samples.
            right: BlockRows of m samples; the same object to use the symmetry.

        Returns:
            Group -> [n, m, ...] in the layout of the mode; [2, n, m] for mode ``projected``, the
            kernel and its standard error.

        Raises:
            OptionError: A group without a parameter that influences the outputs.
            ProblemError: The chunks have different numbers of outputs.
        """
        if left.num_outputs != right.num_outputs:
            raise ProblemError(
                f"Some samples have {left.num_outputs} outputs and others {right.num_outputs}, so "
                "there is no one kernel of them. Pad all batches to one length."
            )
        found = {}
        for group, names in self.groups.items():
            plan = Plan(entries=self.entries)
            mode = self.wanted.contraction
            kernel = add_kernels(plan, left.factors, right.factors, names, mode)
            if kernel is None:
                raise OptionError(
                    f"None of the parameters of group {group!r} ({', '.join(names)}) influences "
                    "the outputs. Choose a parameter group with at least one used parameter."
                )
            result = self.wanted.finish(kernel)
            found[group] = torch.stack(result) if isinstance(result, KernelEstimate) else result
        return found

    def mirrored(self, kernel: Tensor) -> Tensor:
        """The kernel [m, n, ...] with its sides swapped, of one that `multiply` gave."""
        if self.wanted.mode == "projected":
            return kernel.transpose(1, 2)
        swapped = kernel.transpose(0, 1)
        return swapped.transpose(2, 3) if self.wanted.mode == "full" else swapped
