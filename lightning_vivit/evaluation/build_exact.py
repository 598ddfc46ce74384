"""Kernels and Gram matrices of a recorded problem: columns, backward passes, contraction."""

from __future__ import annotations

from dataclasses import replace

import torch

from lightning_vivit.errors import OptionError
from lightning_vivit.evaluation.exact import Evaluation
from lightning_vivit.evaluation.interface import Facts
from lightning_vivit.evaluation.request import Request
from lightning_vivit.evaluation.row_sums import RowSums
from lightning_vivit.evaluation.solved import Block, Grams
from lightning_vivit.evaluation.weights import Weights, cotangents
from lightning_vivit.jacobian.backend import Backend
from lightning_vivit.kernel.compute import KernelTask, compute_kernels
from lightning_vivit.losses import SampleLoss, make_loss
from lightning_vivit.parallel import join, shared_kernels
from lightning_vivit.problem.problem import Recording


def gram_evaluation(
    recording: Recording,
    backend: Backend,
    groups: dict[str, list[str]],
    request: Request,
) -> Evaluation:
    """Kernels and Gram matrices of all groups from one recorded forward pass.

    Args:
        recording: The forward pass.
        backend: For which it was recorded.
        groups: Group name -> parameter names.
        request: What is wanted.

    Raises:
        OptionError: Random columns without a loss, or a group without influence.
        ProblemError: The memory does not suffice, or the loss is not finite.
    """
    located, whole = backend.locate(recording), None
    layout = located.layout
    call, every = recording.loss, layout
    if request.part is not None:
        whole = join(request.part, recording, layout, located.structure)
        call, every = whole.call, whole.layout
        located = replace(located, structure=whole.structure)
    loss = None if call is None else make_loss(call, every)
    weights = _weights(loss, request)
    columns = cotangents(recording.outputs, layout, weights, whole)
    task = KernelTask(backend, located, columns, groups)
    if whole is None:
        kernels = compute_kernels(task, max_memory=request.max_memory)
    else:
        kernels = shared_kernels(task, whole, request.max_memory)
    blocks = {}
    for group, names in groups.items():
        kernel = kernels.blocks[group]
        blocks[group] = (
            Block(names, kernel, None) if weights is None else weights.block(names, kernel)
        )
    facts = Facts.of(recording, layout, groups, located.structure.unused, loss, whole)
    grams = Grams(blocks, facts.num_samples, facts.scale, recording.outputs.dtype, whole)
    shared = weights is None or not weights.own_columns  # columns that are the same for all samples
    basis = None if weights is None else weights.basis
    rows = RowSums(recording, layout, kernels.factors if shared else None, basis, whole)
    return Evaluation(facts, grams, rows, weights, kernels.plan)


def _weights(loss: SampleLoss | None, request: Request) -> Weights | None:
    matrix = request.chosen_matrix
    if loss is not None:
        dtype = torch.float64 if request.dtype is None else request.dtype
        kernel = request.kernel is not False
        return Weights.of(loss, matrix, request.own_columns, kernel, dtype)
    if request.own_columns:
        raise OptionError(f"The columns of the {matrix.title} are made of a loss. Give one.")
    return None
