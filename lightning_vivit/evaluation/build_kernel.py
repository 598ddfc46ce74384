"""Evaluate the NTK alone, with no more backward passes than its mode needs."""

from __future__ import annotations

from torch import Tensor

from lightning_vivit.evaluation.backends import choose_backend
from lightning_vivit.evaluation.interface import Facts
from lightning_vivit.evaluation.kernel_only import KernelEvaluation
from lightning_vivit.evaluation.request import Request
from lightning_vivit.jacobian.structure import Located
from lightning_vivit.kernel.compute import Kernels, KernelTask, compute_kernels
from lightning_vivit.kernel.modes import KernelEstimate, OutputKernel
from lightning_vivit.problem.groups import resolve_groups
from lightning_vivit.problem.problem import Problem, Recording


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
    recording, located, kernels = _kernels(problem, None, wanted, request, groups)
    facts = Facts.of(recording, located.layout, groups, located.structure.unused)
    found = {group: wanted.finish(kernel) for group, kernel in kernels.blocks.items()}
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
    groups = resolve_groups(request.param_groups, problem.trainable())
    _, _, kernels = _kernels(problem, split, wanted, request, groups)
    return {group: wanted.finish(kernel) for group, kernel in kernels.blocks.items()}


def _kernels(
    problem: Problem,
    split: int | None,
    wanted: OutputKernel,
    request: Request,
    groups: dict[str, list[str]],
) -> tuple[Recording, Located, Kernels]:
    """Record a problem and compute its kernels."""
    backend = choose_backend(request.backend, problem)
    names = [name for members in groups.values() for name in members]
    with problem.recorded(names, backend) as recording:
        located = backend.locate(recording)
        columns = wanted.columns(located.outputs, located.layout)
        task = KernelTask(backend, located, columns, groups)
        kernels = compute_kernels(task, wanted.contraction, split, request.max_memory)
    return recording, located, kernels
