"""Kernels and Gram matrices of a recorded problem: columns, backward passes, contraction."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from lightning_vivit.backpack import BackpackSession
from lightning_vivit.errors import OptionError, ProblemError
from lightning_vivit.evaluation.exact import Evaluation
from lightning_vivit.evaluation.request import Request
from lightning_vivit.evaluation.solved import Block
from lightning_vivit.jacobian.autograd import Structure
from lightning_vivit.jacobian.columns import sampled_columns, shared_columns, unit_columns
from lightning_vivit.jacobian.proof import locate_samples, refuse_mixing
from lightning_vivit.kernel.compute import KernelTask, compute_kernels
from lightning_vivit.losses import make_loss
from lightning_vivit.machine.numbers import all_finite
from lightning_vivit.parallel import Whole, join, shared_kernels
from lightning_vivit.problem.problem import Recording
from lightning_vivit.problem.tape.backend import Backend
from lightning_vivit.samples.axis import SampleAxis
from lightning_vivit.samples.layout import SampleLayout

_log = logging.getLogger(__name__)
_SAID: set[str] = set()


def gram_evaluation(
    recording: Recording,
    session: Backend | None,
    groups: dict[str, list[str]],
    request: Request,
) -> Evaluation:
    """Kernels of all groups from one recorded forward pass."""
    matrix, part = request.chosen_matrix, request.part
    outputs = recording.outputs
    axis, structure = located(recording, session)
    layout = SampleLayout(axis.num_samples, axis.minor)
    call, every, whole = recording.loss, layout, None  # type: ignore[var-annotated]
    if part is not None:
        whole = join(part, recording, layout, structure)
        call, every, structure = whole.call, whole.layout, whole.structure
    loss = None if call is None else make_loss(call, every)
    root, gradient = None, None
    small = torch.float64 if request.dtype is None else request.dtype
    if loss is not None:
        gradient = _finite(loss.gradient(), "gradient").to(small)
        root = _finite(matrix.root(loss), "Hessian").to(small)
    basis = None if loss is None or matrix.own_columns else matrix.basis(loss)
    directions = 0 if root is None else root.shape[2]
    if basis is not None and root is not None:
        root = _narrow_root(root, basis.to(small))
    if request.kernel is not False:  # it has all outputs
        basis = None
    if basis is not None:
        cotangents = shared_columns(outputs, layout, basis)
    elif not matrix.own_columns:
        cotangents = unit_columns(outputs, layout)
    else:
        if root is None or gradient is None:
            raise OptionError("Monte-Carlo columns need a loss. Give one, or columns='exact'.")
        cotangents = sampled_columns(outputs, layout, *_own(whole, root, gradient))
    task = KernelTask(recording.tape, outputs, axis, structure, cotangents, groups, session)
    if whole is None:
        kernels = compute_kernels(task, max_memory=request.max_memory)
    else:
        kernels = shared_kernels(task, whole, request.max_memory)
    blocks = {}
    for group, names in groups.items():
        block = kernels.blocks[group]
        if matrix.own_columns:
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
        recording,
        layout,
        loss,
        root,
        gradient,
        directions,
        blocks,
        kernels,
        structure.unused,
        basis,
        whole,
    )


def _own(whole: Whole | None, root: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of the samples that were recorded here."""
    return (root, gradient) if whole is None else (whole.own(root), whole.own(gradient))


def choose_session(request: Request) -> BackpackSession | None:
    """What extends the module with BackPACK, or None for autograd.

    Raises:
        OptionError: The backend does not have the columns that are wanted.
    """
    if request.backend == "auto" and "auto" not in _SAID:
        _SAID.add("auto")
        _log.info("backend='auto' takes autograd: faster than BackPACK on every benchmark network.")
    if request.backend != "backpack":
        return None
    if request.sampled:
        raise OptionError("The BackPACK backend has exact columns. Use backend='autograd'.")
    return BackpackSession()


def located(recording: Recording, session: Backend | None) -> tuple[SampleAxis, Structure]:
    """Where the samples are in the outputs, and the proved structure of the autograd backend."""
    outputs = recording.outputs
    if session is None:
        return locate_samples(recording.tape, outputs, recording.sizes, recording.model)
    refuse_mixing(recording.tape, outputs.shape[0])
    return SampleAxis(0, outputs.shape[0]), Structure((), (), (), ())


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
    if not all_finite(tensor):
        raise ProblemError(
            f"The {what} of the loss with respect to the outputs is not finite. Look at the "
            "outputs and the targets of this batch, or lower the learning rate."
        )
    return tensor


def weigh_kernel(kernel: Tensor, root: Tensor, gradient: Tensor) -> Tensor:
    """Kernel between loss-weighted columns: T^T K T with T = [S | r].

    Args:
        kernel: K, [N, D, N, D].
        root: S, [N, D, M].
        gradient: r, [N, D].

    Returns:
        [N, M+1, N, M+1] in the dtype of `root`; the last column belongs to the gradient.
    """
    weights = torch.cat([root, gradient.unsqueeze(2)], dim=2).transpose(1, 2)  # [N, M+1, D]
    n, columns, d = weights.shape
    half = torch.bmm(weights, kernel.to(weights.dtype).reshape(n, d, n * d))
    half = half.reshape(n * columns, n, d).transpose(0, 1)  # [N, N*(M+1), D]
    whole = torch.bmm(weights, half.transpose(1, 2))  # [N, M+1, N*(M+1)]
    return whole.reshape(n, columns, n, columns)
