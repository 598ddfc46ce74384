"""Evaluate a problem: one forward pass, one batched backward pass, the kernel of each group."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from lightning_vivit.axes import SampleAxis
from lightning_vivit.backends.autograd import Structure
from lightning_vivit.backends.backpack import BackpackSession
from lightning_vivit.backends.proof import locate_samples, refuse_mixing
from lightning_vivit.columns import sampled_columns, shared_columns, unit_columns
from lightning_vivit.errors import OptionError, ProblemError
from lightning_vivit.gram import weigh_kernel
from lightning_vivit.groups import ParamGroups, resolve_groups
from lightning_vivit.kernels import KernelTask, compute_kernels
from lightning_vivit.losses import SampleLayout, make_loss
from lightning_vivit.output_evaluation import OutputEvaluation
from lightning_vivit.output_kernels import KernelEstimate, OutputKernel
from lightning_vivit.parallel import Part, Whole, join, shared_kernels
from lightning_vivit.problem import Problem, Recording
from lightning_vivit.results import Block, Evaluation

COLUMNS = ("exact", "mc")
BACKENDS = ("auto", "autograd", "backpack")
_log = logging.getLogger(__name__)
_SAID: set[str] = set()


def evaluate(
    problem: Problem,
    *,
    param_groups: ParamGroups = "all",
    columns: str = "exact",
    mc_samples: int = 1,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    max_memory: int | None = None,
    kernel: bool = True,
    backend: str = "auto",
    part: Part | None = None,
) -> Evaluation:
    """Run a problem once and keep its kernels.

    Args:
        problem: What is differentiated.
        param_groups: One block (``all``), one per ``layer``, one per ``parameter``, or lists.
        columns: ``exact`` or ``mc`` (Monte-Carlo estimate of the loss Hessian).
        mc_samples: Columns for each sample with ``mc``.
        generator: Random generator for ``mc``.
        dtype: Dtype of the Gram matrix and its eigenvalues; None for float64.
        max_memory: Bytes that may be used over the model's forward pass; None for half of what
            is free on the device.
        kernel: Whether `Evaluation.ntk` will be asked for. Without it only the output directions
            that the loss sees are backpropagated (C - 1 of C for cross-entropy).
        backend: ``autograd`` works for any architecture; ``backpack`` extends a copy of the
            module with BackPACK and refuses what BackPACK cannot do; ``auto`` takes autograd,
            which was faster on every network of the benchmark.
        part: In a run of several processes, says that the problem's batch is this rank's part of
            one batch; the results are then those of the whole batch, on every rank.

    Returns:
        The evaluation. Costs one forward pass, D backward passes in one batch (``mc``:
        mc_samples + 1), and the contraction.

    Raises:
        OptionError: Unknown option value.
        ProblemError: The problem is not supported; the message says what is.
        PeerError: Another rank failed.
    """
    if columns not in COLUMNS:
        raise OptionError(f"Unknown columns {columns!r}. Supported: {', '.join(COLUMNS)}.")
    session = _session(backend, columns)
    groups = resolve_groups(param_groups, problem.trainable())
    wanted = [name for names in groups.values() for name in names]
    with problem.recorded(wanted, session, part is not None) as recording:
        outputs = recording.outputs
        axis, structure = _located(recording, session)
        layout = SampleLayout(axis.num_samples, axis.minor)
        call, every, whole = recording.loss, layout, None  # type: ignore[var-annotated]
        if part is not None:
            whole = join(part, recording, layout, structure)
            call, every, structure = whole.call, whole.layout, whole.structure
        loss = None if call is None else make_loss(call, every)
        root, gradient = None, None
        small = torch.float64 if dtype is None else dtype
        if loss is not None:
            gradient = _finite(loss.gradient(), "gradient").to(small)
            root = loss.hessian_root() if columns == "exact" else None
            root = loss.sampled_root(mc_samples, generator) if root is None else root
            root = _finite(root, "Hessian").to(small)
        basis = None
        if columns == "exact" and loss is not None and not kernel:
            basis = loss.basis()
        if basis is not None and root is not None:
            cotangents = shared_columns(outputs, layout, basis)
            root = _narrow_root(root, basis.to(small))
        elif columns == "exact":
            cotangents = unit_columns(outputs, layout)
        else:
            if root is None or gradient is None:
                raise OptionError("Monte-Carlo columns need a loss. Give one, or columns='exact'.")
            cotangents = sampled_columns(outputs, layout, *_own(whole, root, gradient))
        task = KernelTask(recording.tape, outputs, axis, structure, cotangents, groups, session)
        if whole is None:
            kernels = compute_kernels(task, max_memory=max_memory)
        else:
            kernels = shared_kernels(task, whole, max_memory)
        blocks = {}
        for group, names in groups.items():
            block = kernels.blocks[group]
            if columns == "mc":
                blocks[group] = Block(names, None, block.to(small))
            elif root is None or gradient is None:
                blocks[group] = Block(names, block, None)
            elif basis is None:
                blocks[group] = Block(names, block, weigh_kernel(block, root, gradient))
            else:
                seen = basis.to(small)
                weighted = weigh_kernel(block, seen.T @ root, gradient @ seen)
                blocks[group] = Block(names, None, weighted)
    return Evaluation(
        recording, layout, loss, root, gradient, blocks, kernels, structure.unused, basis, whole
    )


def _own(whole: Whole | None, root: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of the samples that were recorded here."""
    return (root, gradient) if whole is None else (whole.own(root), whole.own(gradient))


def _session(backend: str, columns: str) -> BackpackSession | None:
    if backend not in BACKENDS:
        raise OptionError(f"Unknown backend {backend!r}. Supported: {', '.join(BACKENDS)}.")
    if backend == "auto" and backend not in _SAID:
        _SAID.add(backend)
        _log.info("backend='auto' takes autograd: faster than BackPACK on every benchmark network.")
    if backend != "backpack":
        return None
    if columns != "exact":
        raise OptionError("The BackPACK backend has exact columns. Use backend='autograd'.")
    return BackpackSession()


def _located(recording: Recording, session: BackpackSession | None) -> tuple[SampleAxis, Structure]:
    """Where the samples are in the outputs, and the proved structure of the autograd backend."""
    outputs = recording.outputs
    if session is None:
        return locate_samples(recording.tape, outputs, recording.sizes, recording.model)
    refuse_mixing(recording.tape, outputs.shape[0])
    return SampleAxis(0, outputs.shape[0]), Structure((), (), (), ())


def evaluate_outputs(
    problem: Problem,
    wanted: OutputKernel,
    *,
    param_groups: ParamGroups = "all",
    max_memory: int | None = None,
    backend: str = "auto",
) -> OutputEvaluation:
    """The kernel of a batch with itself, with no more backward passes than its mode needs.

    Args:
        problem: A problem with or without a loss.
        wanted: Mode and outputs.
        param_groups: As in `evaluate`.
        max_memory: As in `evaluate`.
        backend: As in `evaluate`.

    Returns:
        The kernels, and the targets of the loss.

    Raises:
        OptionError: Unknown option value.
        ProblemError: The problem is not supported; the message says what is.
    """
    session = _session(backend, "exact")
    groups = resolve_groups(param_groups, problem.trainable())
    with problem.recorded([name for names in groups.values() for name in names], session) as live:
        task, layout = _output_task(live, groups, wanted, session)
        kernels = compute_kernels(task, wanted.contraction, None, max_memory)
    found = {group: wanted.finish(kernel) for group, kernel in kernels.blocks.items()}
    return OutputEvaluation(live, layout, groups, kernels, task.structure.unused, wanted, found)


def cross_kernel(
    problem: Problem,
    split: int | None,
    wanted: OutputKernel,
    param_groups: ParamGroups,
    max_memory: int | None = None,
    backend: str = "auto",
) -> dict[str, Tensor | KernelEstimate]:
    """NTK between the first `split` samples of a problem and the others.

    Args:
        problem: A problem without a loss.
        split: Number of samples on the left side; None for all against all.
        wanted: Mode and outputs.
        param_groups: As in `evaluate`.
        max_memory: As in `evaluate`.
        backend: As in `evaluate`.

    Returns:
        Group name -> kernel in the layout of the mode, see `OutputKernel`.
    """
    session = _session(backend, "exact")
    groups = resolve_groups(param_groups, problem.trainable())
    with problem.recorded([name for names in groups.values() for name in names], session) as live:
        task, _ = _output_task(live, groups, wanted, session)
        kernels = compute_kernels(task, wanted.contraction, split, max_memory).blocks
    return {group: wanted.finish(kernel) for group, kernel in kernels.items()}


def _output_task(
    recording: Recording,
    groups: dict[str, list[str]],
    wanted: OutputKernel,
    session: BackpackSession | None,
) -> tuple[KernelTask, SampleLayout]:
    axis, structure = _located(recording, session)
    layout = SampleLayout(axis.num_samples, axis.minor)
    columns = wanted.columns(recording.outputs, layout)
    tape, outputs = recording.tape, recording.outputs
    return KernelTask(tape, outputs, axis, structure, columns, groups, session), layout


def _narrow_root(root: Tensor, basis: Tensor) -> Tensor:
    """A root of the same Hessians with as many columns as the basis.

    Args:
        root: S, [N, D, M], its columns in the span of the basis.
        basis: [D, D'], orthonormal.

    Returns:
        [N, D, D'].
    """
    triangle = torch.linalg.qr((basis.T @ root).transpose(1, 2), mode="r").R  # [N, D', D']
    return basis @ triangle.transpose(1, 2)


def _finite(tensor: Tensor, what: str) -> Tensor:
    if not bool(torch.isfinite(tensor).all()):
        raise ProblemError(
            f"The {what} of the loss with respect to the outputs is not finite. Look at the "
            "outputs and the targets of this batch, or lower the learning rate."
        )
    return tensor


__all__ = ["BACKENDS", "COLUMNS", "Evaluation", "cross_kernel", "evaluate", "evaluate_outputs"]
