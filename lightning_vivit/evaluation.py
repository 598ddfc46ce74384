"""Evaluate a problem: one forward pass, one batched backward pass, the kernel of each group."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_vivit.axes import SampleAxis
from lightning_vivit.backends.autograd import Structure, locate_samples, refuse_mixing
from lightning_vivit.backends.backpack import BackpackSession
from lightning_vivit.columns import sampled_columns, shared_columns, unit_columns
from lightning_vivit.errors import OptionError, ProblemError
from lightning_vivit.gram import weigh_kernel
from lightning_vivit.groups import ParamGroups, resolve_groups
from lightning_vivit.kernels import KernelTask, compute_kernels
from lightning_vivit.losses import SampleLayout, make_loss
from lightning_vivit.matrixfree.choice import METHODS, choose_method
from lightning_vivit.matrixfree.evaluation import MatrixFreeEvaluation, Start
from lightning_vivit.matrixfree.products import MATRICES
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
    method: str = "gram",
    k: int = 10,
    tol: float = 1e-3,
    matrix: str = "ggn",
    microbatch: int | None = None,
    start: Mapping[str, Start] | None = None,
) -> Evaluation | MatrixFreeEvaluation:
    """Run a problem once and keep its kernels, or prepare its matrix-free products.

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
        method: ``gram`` (all eigenvalues from the Gram matrix), ``mc`` (the same from Monte-Carlo
            columns), ``matrix_free`` (the k leading pairs from products, see
            `MatrixFreeEvaluation`), or ``auto``: the Gram matrix up to 2048 rows N*D, and beyond
            that what is predicted to be faster and fits into memory. ``auto`` never takes ``mc``.
        k: Eigenpairs that a matrix-free evaluation computes.
        tol: Relative residual of matrix-free eigenpairs.
        matrix: ``ggn``, or ``hessian`` (the true Hessian of the loss, always matrix-free).
        microbatch: Samples in memory at once, matrix-free only; None for all.
        start: `MatrixFreeEvaluation.warm_start` of an earlier evaluation.

    Returns:
        The evaluation. A Gram matrix costs one forward pass, D backward passes in one batch
        (``mc``: mc_samples + 1), and the contraction.

    Raises:
        OptionError: Unknown option value.
        ProblemError: The problem is not supported; the message says what is.
    """
    if columns not in COLUMNS:
        raise OptionError(f"Unknown columns {columns!r}. Supported: {', '.join(COLUMNS)}.")
    if method not in METHODS:
        raise OptionError(f"Unknown method {method!r}. Supported: {', '.join(METHODS)}.")
    if matrix not in MATRICES:
        raise OptionError(f"Unknown matrix {matrix!r}. Supported: {', '.join(MATRICES)}.")
    columns = "mc" if method == "mc" else columns
    groups = resolve_groups(param_groups, problem.trainable())
    wanted = [name for names in groups.values() for name in names]
    undecided = method == "auto" and columns == "exact" and backend != "backpack"
    if matrix == "hessian":
        if method == "mc" or columns == "mc":
            raise OptionError("Monte-Carlo columns estimate the GGN. Use matrix='ggn'.")
        method, undecided = "matrix_free", False
    if method == "matrix_free":
        return MatrixFreeEvaluation(
            problem, groups, k=k, tol=tol, matrix=matrix, microbatch=microbatch, start=start
        )
    session = _session(backend, columns)
    with problem.recorded(wanted, session) as recording:
        if undecided and recording.loss is not None:
            choice = choose_method(recording, wanted, k, kernel, max_memory)
            method = choice.method
        if method != "matrix_free":
            return _gram_evaluation(
                recording,
                session,
                groups,
                columns=columns,
                mc_samples=mc_samples,
                generator=generator,
                dtype=dtype,
                max_memory=max_memory,
                kernel=kernel,
            )
    del recording  # and its graph
    return MatrixFreeEvaluation(
        problem, groups, k=k, tol=tol, matrix=matrix, microbatch=microbatch, start=start
    )


def _gram_evaluation(
    recording: Recording,
    session: BackpackSession | None,
    groups: dict[str, list[str]],
    *,
    columns: str,
    mc_samples: int,
    generator: torch.Generator | None,
    dtype: torch.dtype | None,
    max_memory: int | None,
    kernel: bool,
) -> Evaluation:
    """Kernels of all groups from one recorded forward pass."""
    outputs = recording.outputs
    axis, structure = _located(recording, session)
    layout = SampleLayout(axis.num_samples, axis.minor)
    loss = None if recording.loss is None else make_loss(recording.loss, layout)
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
        cotangents = sampled_columns(outputs, layout, root, gradient)
    task = KernelTask(recording.tape, outputs, axis, structure, cotangents, groups, session)
    kernels = compute_kernels(task, max_memory=max_memory)
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
    return Evaluation(recording, layout, loss, root, blocks, kernels, structure.unused, basis)


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
        return locate_samples(recording.tape, outputs, recording.batch_size, recording.model)
    refuse_mixing(recording.tape, outputs.shape[0])
    return SampleAxis(0, outputs.shape[0]), Structure((), (), (), ())


def cross_kernel(
    problem: Problem,
    split: int,
    mode: str,
    param_groups: ParamGroups,
    max_memory: int | None = None,
    backend: str = "auto",
) -> dict[str, Tensor]:
    """NTK between the first `split` samples of a problem and the others.

    Args:
        problem: A problem without a loss.
        split: Number of samples on the left side; equal to N for all against all.
        mode: ``full``, ``trace`` or ``diagonal``.
        param_groups: As in `evaluate`.
        max_memory: As in `evaluate`.
        backend: As in `evaluate`.

    Returns:
        Group name -> [N1, N2, D, D], [N1, N2] or [N1, N2, D].
    """
    session = _session(backend, "exact")
    groups = resolve_groups(param_groups, problem.trainable())
    wanted = [name for names in groups.values() for name in names]
    with problem.recorded(wanted, session) as recording:
        axis, structure = _located(recording, session)
        layout = SampleLayout(axis.num_samples, axis.minor)
        columns = unit_columns(recording.outputs, layout)
        task = KernelTask(
            recording.tape, recording.outputs, axis, structure, columns, groups, session
        )
        place = None if split == layout.num_samples else split
        kernels = compute_kernels(task, mode, place, max_memory).blocks
    if mode == "full":
        return {group: kernel.permute(0, 2, 1, 3) for group, kernel in kernels.items()}
    return kernels


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


__all__ = [
    "BACKENDS",
    "COLUMNS",
    "MATRICES",
    "METHODS",
    "Evaluation",
    "MatrixFreeEvaluation",
    "cross_kernel",
    "evaluate",
]
