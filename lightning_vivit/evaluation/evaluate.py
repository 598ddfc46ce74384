"""Evaluate a problem: by kernels and Gram matrices, or by matrix-free products."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from lightning_vivit.eigen.start import Start
from lightning_vivit.evaluation.backends import choose_backend
from lightning_vivit.evaluation.build_exact import gram_evaluation
from lightning_vivit.evaluation.build_kernel import evaluate_outputs
from lightning_vivit.evaluation.choice import choose_method, known_choice
from lightning_vivit.evaluation.interface import Result
from lightning_vivit.evaluation.matrix_free import MatrixFreeEvaluation
from lightning_vivit.evaluation.request import Request
from lightning_vivit.matrices import Matrix
from lightning_vivit.parallel import Part
from lightning_vivit.problem.groups import ParamGroups, resolve_groups
from lightning_vivit.problem.problem import Problem


def evaluate(
    problem: Problem,
    *,
    param_groups: ParamGroups = "all",
    columns: str = "exact",
    mc_samples: int = 1,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    max_memory: int | None = None,
    kernel: bool | None = None,
    backend: str = "auto",
    method: str = "gram",
    k: int = 10,
    tol: float = 1e-3,
    matrix: str | Matrix = "ggn",
    microbatch: int | None = None,
    start: Mapping[str, Start] | None = None,
    part: Part | None = None,
) -> Result:
    """Run a problem once and keep its kernels, or prepare its matrix-free products.

    Args:
        problem: What is differentiated.
        param_groups: One block (``all``), one per ``layer``, one per ``parameter``, or lists.
        columns: ``exact`` or ``mc`` (Monte-Carlo estimate of the loss Hessian).
        mc_samples: Columns for each sample with ``mc``.
        generator: Random generator for ``mc``.
        dtype: Dtype of the Gram matrix and its eigenvalues; None for float64.
        max_memory: Bytes that may be used over the model's forward pass; None for half of what
            is free on the device. Matrix-free it limits the samples that are in memory at once;
            the vectors of the search are not counted.
        kernel: Whether `Evaluation.ntk` will be asked for. With False only the output directions
            that the loss sees are backpropagated (C - 1 of C for cross-entropy); with True
            ``auto`` takes the Gram matrix, which alone has it. None is True once there is one.
        backend: ``autograd`` works for any architecture; ``backpack`` extends a copy of the
            module with BackPACK and refuses what BackPACK cannot do; ``auto`` takes autograd,
            which was faster on every network of the benchmark.
        method: ``gram`` (all eigenvalues from the Gram matrix), ``mc`` (the same from Monte-Carlo
            columns), ``matrix_free`` (the k leading pairs from products, see
            `MatrixFreeEvaluation`), or ``auto``: the Gram matrix up to 2048 rows N*D, and beyond
            that what is predicted to be faster and fits into memory. ``auto`` never takes ``mc``.
        k: Eigenpairs that a matrix-free evaluation computes.
        tol: Relative residual of matrix-free eigenpairs.
        matrix: ``ggn``, or ``hessian`` (the true Hessian of the loss, always matrix-free), or a
            matrix of your own.
        microbatch: Samples in memory at once, matrix-free only; None for as many as fit.
        start: `MatrixFreeEvaluation.warm_start` of an earlier evaluation.
        part: In a run of several processes, says that the problem's batch is this rank's part of
            one batch; the results are then those of the whole batch, on every rank. Gram matrices
            only.

    Returns:
        The evaluation. A Gram matrix costs one forward pass, D backward passes in one batch
        (``mc``: mc_samples + 1), and the contraction.

    Raises:
        OptionError: Unknown option value.
        ProblemError: The problem is not supported; the message says what is.
    """
    request = Request(
        param_groups=param_groups,
        method=method,
        matrix=matrix,
        columns=columns,
        mc_samples=mc_samples,
        generator=generator,
        kernel=kernel,
        k=k,
        tol=tol,
        microbatch=microbatch,
        start=start,
        dtype=dtype,
        max_memory=max_memory,
        backend=backend,
        part=part,
    )
    return evaluate_request(problem, request)


def evaluate_request(problem: Problem, request: Request) -> Result:
    """Evaluate what is wanted, by the method that is named or by the cheaper one.

    Args:
        problem: What is differentiated.
        request: What is wanted.

    Returns:
        The evaluation.

    Raises:
        OptionError: The request does not fit the problem.
        ProblemError: The problem is not supported; the message says what is.
    """
    groups = resolve_groups(request.param_groups, problem.trainable())
    if request.output_kernel is not None:
        return evaluate_outputs(problem, request, request.output_kernel, groups)
    wanted = [name for names in groups.values() for name in names]
    matrix_free = request.matrix_free or (
        request.undecided and known_choice(problem, wanted, request) is not None
    )
    if not matrix_free:
        backend = choose_backend(request.backend, problem, request.own_columns)
        with problem.recorded(wanted, backend, request.part is not None) as recording:
            if request.undecided and recording.loss is not None:
                matrix_free = choose_method(problem, recording, wanted, request) == "matrix_free"
            if not matrix_free:
                return gram_evaluation(recording, backend, groups, request)
        del recording  # and its graph
    return MatrixFreeEvaluation(problem, groups, request)
