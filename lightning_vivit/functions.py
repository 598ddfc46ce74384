"""The functions that users call: kernels, eigenvalues, directions and Newton steps of a model.

All take a model, a loss and a batch, or a `Problem` in place of the model. They compute the
exact matrices from one kernel; use them for batches with N * C up to a few thousand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lightning_vivit.errors import OptionError, ProblemError
from lightning_vivit.evaluation.build_kernel import cross_kernel
from lightning_vivit.evaluation.derivatives import Damping, Directions
from lightning_vivit.evaluation.evaluate import evaluate
from lightning_vivit.evaluation.interface import Result
from lightning_vivit.evaluation.request import Request
from lightning_vivit.kernel.modes import OutputKernel
from lightning_vivit.matrices import Matrix
from lightning_vivit.problem.groups import ParamGroups
from lightning_vivit.problem.problem import Problem
from lightning_vivit.samples.batch import describe
from lightning_vivit.samples.cut import form, join
from lightning_vivit.samples.size import batch_size

Loss = Callable[[Tensor, Any], Tensor]
_T = TypeVar("_T")


def empirical_ntk(
    model: nn.Module | Problem,
    x1: Any = None,
    x2: Any = None,
    mode: str = "full",
    *,
    outputs: Sequence[int] | None = None,
    projections: int = 10,
    seed: int = 0,
    param_groups: ParamGroups = "all",
    max_memory: int | None = None,
    backend: str = "auto",
) -> Any:
    """Empirical neural tangent kernel J(x1) J(x2)^T.

    Jacot et al. 2018 (arXiv:1806.07572); modes as in Novak et al. 2022 (arXiv:2206.08720). The
    first three cost C backward passes, ``pseudo`` one, ``projected`` as many as `projections`.

    Args:
        model: A module, run in the mode in which it is; or a `Problem`, whose inputs take the
            place of `x1`.
        x1: Inputs, N1 samples on the first axis.
        x2: Further inputs with N2 samples; None for x1 against itself.
        mode: ``full``: [N1, N2, C, C]; ``trace``: [N1, N2], summed over equal outputs;
            ``diagonal``: [N1, N2, C], equal outputs; ``pseudo``: [N1, N2], the kernel of the
            outputs' sum over sqrt(C) (Mohamadi, Bae and Sutherland 2023, arXiv:2206.12543), near
            ``trace`` / C for wide networks; ``projected``: ``trace`` estimated from random signs
            in output space (Hutchinson), with its standard error. C counts all outputs of a
            sample.
        outputs: Indices of the outputs that count, such as some classes; None for all. Only
            these are backpropagated.
        projections: Number of random directions of mode ``projected``, at least 2.
        seed: Of the random directions, which are the same for both sides and all calls.
        param_groups: One block (``all``), one per ``layer``, one per ``parameter``, or lists.
        max_memory: Bytes that may be used over the model's forward pass; None for half of what
            is free on the device.
        backend: ``autograd`` (any architecture), ``backpack``, or ``auto``.

    Returns:
        The kernel, for mode ``projected`` a `KernelEstimate` (kernel, standard_error); a dict
        group name -> kernel if there are several groups.

    Raises:
        OptionError: Unknown mode, output or parameter group.
        ProblemError: Unsupported outputs or batch.
        InteractionError: Samples influence each other.
    """
    wanted = OutputKernel.of(mode, outputs, projections, seed)
    if isinstance(model, Problem):
        if x1 is not None or x2 is not None:
            raise OptionError("Got a Problem and inputs. Give one of them.")
        problem, first = model, None
    else:
        first = None if x2 is None else batch_size(x1)
        if x2 is not None and form(x1) != form(x2):
            raise ProblemError(
                f"x1 has {describe(x1)}, x2 {describe(x2)}. The samples of both must have the "
                "same shape and dtype, and what is not per sample must be the same."
            )
        problem = Problem(model, None, x1 if x2 is None else join([x1, x2]))
    request = Request(param_groups=param_groups, max_memory=max_memory, backend=backend)
    return _single(cross_kernel(problem, first, wanted, request), param_groups)


def ggn_eigenvalues(
    model: nn.Module | Problem,
    loss: Loss | None = None,
    inputs: Any = None,
    targets: Any = None,
    *,
    param_groups: ParamGroups = "all",
    samples: Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
    backend: str = "auto",
) -> Tensor | dict[str, Tensor]:
    """Eigenvalues of the generalized Gauss-Newton matrix that can differ from zero.

    Args:
        model: A module or a `Problem`.
        loss: ``loss(outputs, targets)``.
        inputs: Passed to the model.
        targets: Passed to the loss.
        param_groups: One block (``all``), one per ``layer``, one per ``parameter``, or lists.
        samples: Indices of the samples that the GGN is made of; None for all.
        dtype: Dtype of the Gram matrix; None for float64.
        backend: ``autograd`` (any architecture), ``backpack``, or ``auto``.

    Returns:
        [N*C] ascending, as torch.linalg.eigvalsh returns them; the other P - N*C are zero. A
        dict if there are several groups.

    Raises:
        OptionError: Unknown parameter group, or samples out of range.
        ProblemError: Unsupported loss, outputs or batch.
        InteractionError: Samples influence each other.
    """
    found = _evaluate(model, loss, inputs, targets, param_groups, dtype, backend)
    results = {group: found.eigenvalues(group, samples) for group in found.groups}
    return _single(results, param_groups)


def ggn_eigenpairs(
    model: nn.Module | Problem,
    loss: Loss | None = None,
    inputs: Any = None,
    targets: Any = None,
    k: int | None = None,
    *,
    param_groups: ParamGroups = "all",
    samples: Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
    backend: str = "auto",
) -> Any:
    """The k largest eigenvalues of the GGN with eigenvectors in parameter space.

    Args:
        model: A module or a `Problem`.
        loss: ``loss(outputs, targets)``.
        inputs: Passed to the model.
        targets: Passed to the loss.
        k: Number of pairs; None for all N*C.
        param_groups: One block (``all``), one per ``layer``, one per ``parameter``, or lists.
        samples: Indices of the samples that the GGN is made of; None for all.
        dtype: Dtype of the Gram matrix; None for float64.
        backend: ``autograd`` (any architecture), ``backpack``, or ``auto``.

    Returns:
        Eigenvalues [K] ascending and a dict parameter name -> [K, *shape] of eigenvectors with
        norm 1 over the group. A dict of such pairs if there are several groups.

    Raises:
        OptionError: k is out of range or includes vanishing eigenvalues.
        ProblemError: Unsupported loss, outputs or batch.
        InteractionError: Samples influence each other.
    """
    found = _evaluate(model, loss, inputs, targets, param_groups, dtype, backend)
    results = {}
    for group in found.groups:
        vectors = found.eigenvectors(group, k, samples)
        results[group] = (found.eigenvalues(group, samples, k), vectors)
    return _single(results, param_groups)


def directional_derivatives(
    model: nn.Module | Problem,
    loss: Loss | None = None,
    inputs: Any = None,
    targets: Any = None,
    k: int | None = None,
    *,
    param_groups: ParamGroups = "all",
    grad_samples: Sequence[int] | None = None,
    ggn_samples: Sequence[int] | None = None,
    matrix: str | Matrix = "ggn",
    dtype: torch.dtype | None = None,
    backend: str = "auto",
) -> Directions | dict[str, Directions]:
    """Slope and curvature of every sample along k leading eigenvectors, of the GGN for one.

    Dangel, Tatzel and Hennig 2022 (arXiv:2106.02624), section 3.

    Args:
        model: A module or a `Problem`.
        loss: ``loss(outputs, targets)``.
        inputs: Passed to the model.
        targets: Passed to the loss.
        k: Number of directions; None for all N*C.
        param_groups: One block (``all``), one per ``layer``, one per ``parameter``, or lists.
        grad_samples: Indices of the samples whose slopes are wanted; None for all.
        ggn_samples: Indices of the samples that the matrix is made of; None for all.
        matrix: ``ggn``, ``empirical_fisher``, or a matrix of your own that has rows.
        dtype: Dtype of the Gram matrix; None for float64.
        backend: ``autograd`` (any architecture), ``backpack``, or ``auto``.

    Returns:
        `Directions` with gammas [N, K] and lambdas [N, K]; a dict if there are several groups.

    Raises:
        OptionError: k or the samples are out of range, or a matrix along whose eigenvectors samples
            have no curvature.
        ProblemError: Unsupported loss, outputs or batch.
        InteractionError: Samples influence each other.
    """
    found = _evaluate(model, loss, inputs, targets, param_groups, dtype, backend, matrix)
    results = {
        group: found.directions(group, k, grad_samples=grad_samples, ggn_samples=ggn_samples)
        for group in found.groups
    }
    return _single(results, param_groups)


def newton_step(
    model: nn.Module | Problem,
    loss: Loss | None = None,
    inputs: Any = None,
    targets: Any = None,
    k: int | None = None,
    damping: Damping = 0.0,
    *,
    param_groups: ParamGroups = "all",
    grad_samples: Sequence[int] | None = None,
    ggn_samples: Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
    backend: str = "auto",
) -> Any:
    """Damped Newton step in the span of the GGN's k leading eigenvectors.

    Args:
        model: A module or a `Problem`.
        loss: ``loss(outputs, targets)``.
        inputs: Passed to the model.
        targets: Passed to the loss.
        k: Number of directions; None for all that the batch determines.
        damping: A number, [K] numbers (one per direction), or a function of (eigenvalues [K],
            gammas [N, K], lambdas [N, K]) that returns [K].
        param_groups: One block (``all``), one per ``layer``, one per ``parameter``, or lists.
        grad_samples: Indices of the samples that the gradient is taken over; None for all.
        ggn_samples: Indices of the samples that the GGN is made of; None for all.
        dtype: Dtype of the Gram matrix; None for float64.
        backend: ``autograd`` (any architecture), ``backpack``, or ``auto``.

    Returns:
        Dict parameter name -> step [*shape], over all groups: add it to the parameters.

    Raises:
        OptionError: k is out of range, or the damping does not fit.
        ProblemError: Unsupported loss, outputs or batch.
        InteractionError: Samples influence each other.
    """
    found = _evaluate(model, loss, inputs, targets, param_groups, dtype, backend)
    step: dict[str, Tensor] = {}
    for group in found.groups:
        step |= found.newton_step(
            group, k, damping, grad_samples=grad_samples, ggn_samples=ggn_samples
        )
    return step


def _evaluate(
    model: nn.Module | Problem,
    loss: Loss | None,
    inputs: Any,
    targets: Any,
    param_groups: ParamGroups,
    dtype: torch.dtype | None,
    backend: str,
    matrix: str | Matrix = "ggn",
) -> Result:
    if isinstance(model, Problem):
        if loss is not None or inputs is not None or targets is not None:
            raise OptionError("Got a Problem and a loss or data. Give one of them.")
        problem = model
    else:
        if loss is None:
            raise OptionError(
                "Got no loss. The matrix is that of a loss: give loss(outputs, targets), such as "
                "torch.nn.CrossEntropyLoss()."
            )
        problem = Problem(model, loss, inputs, targets)
    return evaluate(
        problem,
        param_groups=param_groups,
        dtype=dtype,
        kernel=False,
        backend=backend,
        matrix=matrix,
    )


def _single(results: dict[str, _T], groups: ParamGroups) -> Any:
    return results["all"] if isinstance(groups, str) and groups == "all" else results
