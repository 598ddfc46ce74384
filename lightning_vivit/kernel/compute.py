"""Kernels of parameter groups, computed in passes that stay inside a memory budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from lightning_vivit.errors import OptionError, ProblemError
from lightning_vivit.factors import MODES, Factor
from lightning_vivit.factors.orders import CHUNK_ENTRIES
from lightning_vivit.jacobian.backend import Backend
from lightning_vivit.jacobian.passes import Pass
from lightning_vivit.jacobian.structure import Located
from lightning_vivit.kernel.contraction import add_kernels
from lightning_vivit.kernel.plan import Plan
from lightning_vivit.machine.memory import default_budget

_RETRIES = 4


@dataclass(frozen=True)
class Kernels:
    """Kernels of all groups.

    Attributes:
        blocks: Group -> [N, D, M, D], [N, M] or [N, M, D].
        factors: Parameter -> factor, if all of them fitted into the budget at once.
        plan: What each layer cost.
    """

    blocks: dict[str, Tensor]
    factors: dict[str, Factor] | None
    plan: Plan


@dataclass(frozen=True)
class KernelTask:
    """What a kernel is computed from.

    Attributes:
        backend: Takes the factors.
        located: The forward pass, recorded for it.
        columns: [D, *outputs shape], the cotangents.
        groups: Group name -> parameter names.
    """

    backend: Backend
    located: Located
    columns: Tensor
    groups: Mapping[str, Sequence[str]]

    def factors(
        self, names: Sequence[str], columns: Tensor, gathers: bool = False
    ) -> dict[str, Factor]:
        """Factors of some parameters for some columns."""
        return self.backend.factors(self.located, columns, names, gathers)

    def passes(self, num_samples: int, fixed: int, budget: int) -> list[Pass]:
        """The backward sweeps, with `fixed` bytes of the budget taken throughout."""
        names = [name for members in self.groups.values() for name in members]
        depth = self.columns.shape[0]
        return self.backend.passes(self.located, names, num_samples, depth, fixed, budget)


def kernel_bytes(num_samples: int, num_columns: int, mode: str, itemsize: int, groups: int) -> int:
    """Bytes of the kernels and of the temporary products while they are added up."""
    pairs = num_samples**2
    pairs *= {"full": num_columns**2, "diagonal": num_columns, "trace": 1}[mode]
    return pairs * itemsize * (groups + 2)


def compute_kernels(
    task: KernelTask, mode: str = "full", split: int | None = None, max_memory: int | None = None
) -> Kernels:
    """Compute the kernels of all groups.

    Args:
        task: What they are computed from.
        mode: ``full``, ``trace`` or ``diagonal``.
        split: If given, samples 0..split-1 against the others; otherwise all against all.
        max_memory: Bytes that may be used over the model's forward pass; None for half of what
            is free on the device.

    Returns:
        The kernels. On an accelerator that runs out of memory all the same, the budget is halved
        and the work tried again.

    Raises:
        OptionError: Unknown mode, or a group without a parameter that influences the outputs.
        ProblemError: The budget is too small; the message says what would fit.
    """
    if mode not in MODES:
        raise OptionError(f"Unknown mode {mode!r}. Supported: {', '.join(MODES)}.")
    budget = default_budget(task.columns.device) if max_memory is None else max_memory
    for attempt in range(_RETRIES):
        try:
            return _compute(task, mode, split, budget)
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            if attempt == _RETRIES - 1:
                raise ProblemError(
                    f"Out of memory on {task.columns.device} even with a budget of "
                    f"{budget / 2**20:.0f} MiB. Use fewer samples (max_samples) or Monte-Carlo "
                    "columns (mc_samples=1)."
                ) from error
            budget //= 2
    raise AssertionError("unreachable")


def _compute(task: KernelTask, mode: str, split: int | None, budget: int) -> Kernels:
    count, depth = task.located.axis.num_samples, task.columns.shape[0]
    itemsize = task.columns.element_size()
    fixed = kernel_bytes(count, depth, mode, itemsize, len(task.groups))
    passes = task.passes(count, fixed, budget)
    plan = Plan(entries=min(CHUNK_ENTRIES, max(1, budget // (8 * itemsize))))
    totals: dict[str, Tensor] = {}
    kept: dict[str, Factor] | None = {} if _fits_at_once(passes) else None
    for part in passes:
        if part.blocks == 1:
            factors = plan.sweep(partial(task.factors, part.names, task.columns, part.gathers))
            for group, members in task.groups.items():
                wanted = [name for name in members if name in part.names]
                block = add_kernels(plan, factors, factors, wanted, mode, split)
                if block is not None:
                    totals[group] = totals[group].add_(block) if group in totals else block
            if kept is not None:
                kept.update(factors)
        else:
            _add_by_blocks(task, part, mode, split, plan, totals)
    for group, members in task.groups.items():
        if group not in totals:
            raise OptionError(
                f"None of the parameters of group {group!r} ({', '.join(members)}) influences the "
                "outputs. Choose a parameter group with at least one used parameter."
            )
    return Kernels({group: totals[group] for group in task.groups}, kept, plan)


def _fits_at_once(passes: Sequence[Pass]) -> bool:
    return len(passes) <= 1 and all(part.blocks == 1 for part in passes)


def _add_by_blocks(
    task: KernelTask,
    part: Pass,
    mode: str,
    split: int | None,
    plan: Plan,
    totals: dict[str, Tensor],
) -> None:
    """One parameter bundle whose columns do not fit at once: pairs of column blocks in turn."""
    depth = task.columns.shape[0]
    step = -(-depth // part.blocks)
    starts = range(0, depth, step)
    count = task.located.axis.num_samples
    rows = count if split is None else split
    others = count if split is None else count - split
    shape = {"full": (rows, depth, others, depth), "trace": (rows, others)}.get(
        mode, (rows, others, depth)
    )
    for i in starts:
        left = plan.sweep(partial(task.factors, part.names, task.columns[i : i + step]))
        for j in starts:
            pairs_needed = j <= i if split is None else True
            if not pairs_needed or (mode != "full" and j != i):
                continue
            right = left
            if j != i:
                right = plan.sweep(partial(task.factors, part.names, task.columns[j : j + step]))
            for group, members in task.groups.items():
                wanted = [name for name in members if name in part.names]
                block = add_kernels(plan, left, right, wanted, mode, split)
                if block is None:
                    continue
                if group not in totals:
                    totals[group] = block.new_zeros(shape)
                total = totals[group]
                if mode == "trace":
                    total += block
                elif mode == "diagonal":
                    total[:, :, i : i + step] += block
                else:
                    total[:, i : i + step, :, j : j + step] += block
                    if split is None and j != i:
                        total[:, j : j + step, :, i : i + step] += block.permute(2, 3, 0, 1)
