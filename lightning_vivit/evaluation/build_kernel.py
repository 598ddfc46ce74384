"""Evaluate the NTK alone, with no more backward passes than its mode needs."""

from __future__ import annotations

from torch import Tensor

from lightning_vivit.evaluation.build_exact import choose_session, located
from lightning_vivit.evaluation.interface import Facts
from lightning_vivit.evaluation.kernel_only import KernelEvaluation
from lightning_vivit.evaluation.request import Request
from lightning_vivit.kernel.compute import KernelTask, compute_kernels
from lightning_vivit.kernel.modes import KernelEstimate, OutputKernel
from lightning_vivit.problem.groups import resolve_groups
from lightning_vivit.problem.problem import Problem, Recording
from lightning_vivit.problem.tape.backend import Backend
from lightning_vivit.samples.layout import SampleLayout


def evaluate_outputs(
    problem: Problem, request: Request, wanted: OutputKernel, groups: dict[str, list[str]]
) -> KernelEvaluation:
    """The kernel of a batch with itself, with no more backward passes than its mode needs.

    Args:
        problem: A problem with or without a loss.
        request: Backend and memory.
        wanted: Mode and outputs.
        groups: Group name -> parameter names.

    Returns:
        The kernels, and the targets of the loss.

    Raises:
        OptionError: An output that does not exist.
        ProblemError: The problem is not supported; the message says what is.
    """
    session = choose_session(request)
    names = [name for members in groups.values() for name in members]
    with problem.recorded(names, session, for_sweeps=True) as live:
        task, layout = _output_task(live, groups, wanted, session)
        kernels = compute_kernels(task, wanted.contraction, None, request.max_memory)
    found = {group: wanted.finish(kernel) for group, kernel in kernels.blocks.items()}
    facts = Facts.of(live, layout, groups, task.structure.unused)
    return KernelEvaluation(facts, wanted, found, kernels.plan)


def cross_kernel(
    problem: Problem, split: int | None, wanted: OutputKernel, request: Request
) -> dict[str, Tensor | KernelEstimate]:
    """NTK between the first `split` samples of a problem and the others.

    Args:
        problem: A problem without a loss.
        split: Number of samples on the left side; None for all against all.
        wanted: Mode and outputs.
        request: Parameter groups, backend and memory.

    Returns:
        Group name -> kernel in the layout of the mode, see `OutputKernel`.
    """
    session = choose_session(request)
    groups = resolve_groups(request.param_groups, problem.trainable())
    names = [name for members in groups.values() for name in members]
    with problem.recorded(names, session, for_sweeps=True) as live:
        task, _ = _output_task(live, groups, wanted, session)
        kernels = compute_kernels(task, wanted.contraction, split, request.max_memory).blocks
    return {group: wanted.finish(kernel) for group, kernel in kernels.items()}


def _output_task(
    recording: Recording,
    groups: dict[str, list[str]],
    wanted: OutputKernel,
    session: Backend | None,
) -> tuple[KernelTask, SampleLayout]:
    axis, structure = located(recording, session)
    layout = SampleLayout(axis.num_samples, axis.minor)
    columns = wanted.columns(recording.outputs, layout)
    tape, outputs = recording.tape, recording.outputs
    return KernelTask(tape, outputs, axis, structure, columns, groups, session), layout
