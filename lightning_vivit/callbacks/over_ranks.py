"""An evaluation over the processes of a run: each on its part of the batch, or all on the whole."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from lightning.pytorch import LightningModule

from lightning_vivit.callbacks.measurement import Measurement
from lightning_vivit.callbacks.options import DTYPES
from lightning_vivit.evaluation.evaluate import evaluate_request
from lightning_vivit.evaluation.interface import Result
from lightning_vivit.evaluation.request import Request
from lightning_vivit.parallel import (
    Part,
    Ranks,
    common_buffers,
    gather_batch,
    take_part,
)
from lightning_vivit.problem.isolation.eval_mode import eval_mode
from lightning_vivit.problem.problem import Problem
from lightning_vivit.samples.batch import checksum


def evaluate_over_ranks(
    monitor: Measurement,
    wanted: Request,
    module: LightningModule,
    batch: Any,
    batch_idx: int,
    ranks: Ranks,
) -> Result:
    """The evaluation of a monitor's batch.

    Args:
        monitor: Says how the problem is stated.
        wanted: What is wanted at this step.
        module: The module that trains, or a copy with all parameters.
        batch: This rank's own batch, or the probe that all ranks hold.
        batch_idx: Passed to `training_step`.
        ranks: The processes of the run.

    Raises:
        Exception: What the step, the problem or the evaluation raises, here or on another rank.
    """
    several, settings = ranks.size > 1, monitor.settings
    divided = several and wanted.output_kernel is None and not wanted.matrix_free

    def state(some: Any) -> Problem:
        if settings.problem is None:
            problem = Problem.from_training_step(module, some, batch_idx)
        else:
            problem = settings.problem(module, some)
        problem.dtype = problem.dtype or DTYPES[settings.replay_dtype]
        problem.in_eval = True  # also where a result computes later
        return problem

    with ExitStack() as stack:
        stack.enter_context(common_buffers(module, ranks))
        if divided:
            batch, part = _part(monitor, batch, ranks, state)
            wanted = replace(wanted, part=part)
        elif several:  # not divided: every rank computes the whole
            batch = batch if _is_common(monitor, batch, ranks) else gather_batch(batch, ranks)
        if settings.problem is None:
            return evaluate_request(state(batch), wanted)
        stack.enter_context(eval_mode(module))
        problem = state(batch)
        stack.enter_context(eval_mode(problem.model))
        return evaluate_request(problem, wanted)


def _part(
    monitor: Measurement, batch: Any, ranks: Ranks, state: Callable[[Any], Problem]
) -> tuple[Any, Part]:
    """What this rank looks at: its part of a probe that all ranks hold, or its own batch."""
    if _is_common(monitor, batch, ranks):
        mine, borrowed = take_part(batch, ranks)
        return mine, Part(ranks, borrowed, lambda: state(batch))
    return batch, Part(ranks, False, lambda: state(gather_batch(batch, ranks)))


def _is_common(monitor: Measurement, batch: Any, ranks: Ranks) -> bool:
    """Whether all ranks hold the same probe."""
    mark = None if monitor.source.data == "batch" else checksum(batch)
    marks = set(ranks.exchange(mark))
    return marks != {None} and len(marks) == 1
