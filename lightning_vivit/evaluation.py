"""One forward pass and one batched backward pass: kernel, spectrum, directions and steps.

An `Evaluation` pays for the kernel once; the eigenvalues, the directional derivatives, the
Newton step and the NTK of the same batch are cheap linear algebra on it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_vivit.axes import SampleAxis
from lightning_vivit.backends.autograd import Structure, locate_samples, refuse_mixing
from lightning_vivit.backends.backpack import BackpackSession
from lightning_vivit.batched import batched_grad
from lightning_vivit.columns import sampled_columns, shared_columns, unit_columns
from lightning_vivit.directions import Damping, Directions, directions_from_gram
from lightning_vivit.errors import OptionError, ProblemError
from lightning_vivit.factors import MODES, Factor
from lightning_vivit.gram import weigh_kernel
from lightning_vivit.groups import ParamGroups, resolve_groups
from lightning_vivit.kernels import Kernels, KernelTask, compute_kernels
from lightning_vivit.losses import SampleLayout, SampleLoss, make_loss
from lightning_vivit.problem import Problem, Recording
from lightning_vivit.spectrum import gram_eigenpairs, gram_eigenvalues, numerical_floor

COLUMNS = ("exact", "mc")
BACKENDS = ("auto", "autograd", "backpack")
_log = logging.getLogger(__name__)
_SAID: set[str] = set()
_NO_LOSS = "The problem has no loss, so only the NTK is known. Give a loss."


@dataclass(frozen=True)
class _Block:
    """What one parameter group contributes."""

    names: list[str]
    kernel: Tensor | None  # [N, D, N, D], exact columns only
    weighted: Tensor | None  # [N, M+1, N, M+1], the gradient last; None without a loss


class Evaluation:
    """Results of one evaluated problem.

    Attributes:
        groups: Group name -> parameter names.
        num_samples: N.
        outputs: [N, D], detached.
        targets: The loss call's target as given; None without a loss.
        ignore_index: Class index that the loss ignores.
        loss: Value of the loss as the user reduces it; None without a loss.
        scale: The loss is ``scale * sum_n l_n``; None without a loss.
        unused: Trainable parameters that do not influence the outputs.
    """

    def __init__(
        self,
        recording: Recording,
        layout: SampleLayout,
        loss: SampleLoss | None,
        root: Tensor | None,
        blocks: dict[str, _Block],
        kernels: Kernels,
        unused: Sequence[str],
        basis: Tensor | None,
    ) -> None:
        """Keep the kernels; use `evaluate` to make one."""
        self._tape = recording.tape
        self._live_outputs = recording.outputs
        self._layout = layout
        self._root = root
        self._blocks = blocks
        self._plan = kernels.plan
        self._basis = basis
        self._factors: dict[str, Factor] | None = None  # of shared columns, if all were kept
        if basis is not None or all(block.kernel is not None for block in blocks.values()):
            self._factors = kernels.factors
        self._pairs: dict[tuple[str, tuple[int, ...] | None], tuple[Tensor, Tensor]] = {}
        self._values: dict[tuple[str, tuple[int, ...] | None], Tensor] = {}
        self.groups = {name: block.names for name, block in blocks.items()}
        self.num_samples = layout.num_samples
        self.outputs = layout.flatten(recording.outputs.detach())
        self.targets = None if recording.loss is None else recording.loss.target
        self.loss = recording.value
        self.scale = None if loss is None else loss.scale
        self.ignore_index = -100
        if recording.loss is not None:
            self.ignore_index = int(recording.loss.options.get("ignore_index", -100))
        self.unused = list(unused)

    @property
    def num_directions(self) -> int:
        """The largest number of directions that can be asked for: samples times columns."""
        if self._root is None:
            raise OptionError(_NO_LOSS)
        columns = self._root.shape[2] if self._basis is None else self._basis.shape[0]
        return self.num_samples * columns

    def sample_targets(self) -> Tensor | None:
        """The targets with one row per sample, [N, ...]; None if they are not a tensor of rows."""
        targets = self.targets
        if not isinstance(targets, Tensor) or targets.ndim == 0:
            return None
        return targets if targets.shape[0] == self.num_samples else self._layout.split(targets)

    def rank(self, group: str = "all") -> int:
        """Number of eigenvalues of the GGN above rounding."""
        values = self.eigenvalues(group)
        return int((values > numerical_floor(values, self._live_outputs.dtype)).sum())

    def ntk(self, group: str = "all", mode: str = "full") -> Tensor:
        """Empirical neural tangent kernel of the batch.

        Args:
            group: Parameter group.
            mode: ``full``: [N, N, D, D]; ``trace``: [N, N], summed over outputs; ``diagonal``:
                [N, N, D].

        Returns:
            The kernel in the layout of `mode`.

        Raises:
            OptionError: Unknown mode or group, or Monte-Carlo columns.
        """
        kernel = self._block(group).kernel
        if kernel is None:
            raise OptionError(
                "This evaluation has no NTK: it has Monte-Carlo columns, or only those that the "
                "loss sees. Evaluate with columns='exact' and kernel=True."
            )
        if mode == "full":
            return kernel.permute(0, 2, 1, 3)
        if mode == "trace":
            return torch.einsum("ndmd->nm", kernel)
        if mode == "diagonal":
            return torch.einsum("ndmd->nmd", kernel)
        raise OptionError(f"Unknown mode {mode!r}. Supported: {', '.join(MODES)}.")

    def eigenvalues(self, group: str = "all", samples: Sequence[int] | None = None) -> Tensor:
        """Eigenvalues of the GGN that can differ from zero.

        Args:
            group: Parameter group.
            samples: Restrict the GGN to these samples of the batch.

        Returns:
            [N*M] ascending, M = D for exact columns.
        """
        key = (group, _key(samples))
        if key not in self._values:
            kept = self._pairs.get(key)
            if kept is not None and kept[0].numel() == kept[1].shape[0]:
                self._values[key] = kept[0]
            else:
                gram = self._gram(group, samples)
                self._values[key] = gram_eigenvalues(gram, self._live_outputs.dtype)
        values = self._values[key]
        if self._basis is None:
            return values
        missing = values.numel() // self._basis.shape[1] * self._basis.shape[0] - values.numel()
        return torch.cat([values.new_zeros(missing), values])  # what the loss does not see

    def directions(
        self,
        group: str = "all",
        k: int | None = None,
        *,
        grad_samples: Sequence[int] | None = None,
        ggn_samples: Sequence[int] | None = None,
    ) -> Directions:
        """Slopes and curvatures of every sample along the k leading eigenvectors.

        Args:
            group: Parameter group.
            k: Number of directions; None for all N*M.
            grad_samples: Samples whose slopes are wanted; None for all.
            ggn_samples: Samples of which the GGN is made; None for all.

        Returns:
            The directions, ascending in their eigenvalues.

        Raises:
            OptionError: k is out of range.
        """
        weighted, gradient_scale = self._weighted(group)
        ggn = self._indices(ggn_samples)
        grad = self._indices(grad_samples)
        available = len(ggn) * (weighted.shape[1] - 1)
        beyond = 0  # directions that the loss does not see
        if k is not None and available < k <= self.num_directions:
            k, beyond = available, k - available
        values, vectors = self._eigenpairs(group, k, ggn_samples)
        scale = self._subset_scale(len(ggn))
        cross = weighted[ggn][:, :-1][:, :, grad, -1].reshape(-1, len(grad)) * scale**0.5
        found = directions_from_gram(
            values,
            vectors,
            cross,
            len(ggn),
            scale,
            self._subset_scale(len(grad)) if grad_samples is not None else gradient_scale,
            self._live_outputs.dtype,
        )
        return found.with_undetermined(beyond)

    def eigenvectors(
        self, group: str = "all", k: int | None = None, samples: Sequence[int] | None = None
    ) -> dict[str, Tensor]:
        """The k leading eigenvectors of the GGN in parameter space.

        Args:
            group: Parameter group.
            k: Number of eigenvectors; None for all N*M.
            samples: Restrict the GGN to these samples of the batch.

        Returns:
            Parameter name -> [K, *shape], ascending in their eigenvalues; each has norm 1 over
            the group. Costs one backward pass for each eigenvector.

        Raises:
            OptionError: k is out of range, or includes directions whose eigenvalue vanishes.
        """
        values, vectors = self._eigenpairs(group, k, samples)
        if bool((values <= 0).any()):
            raise OptionError(
                f"{int((values <= 0).sum())} of the {values.numel()} eigenvalues vanish, so their "
                "eigenvectors are not determined by this batch. Ask for fewer."
            )
        coefficients = self._output_coefficients(values, vectors, samples)
        found = self._vector_jacobian(group, coefficients)
        norms = [torch.linalg.vector_norm(part.flatten(1), dim=1) for part in found.values()]
        norm = torch.linalg.vector_norm(torch.stack(norms), dim=0)
        for part in found.values():
            part.div_(norm.reshape(-1, *[1] * (part.ndim - 1)))
        return found

    def gradient_norm_squared(self, group: str = "all") -> Tensor:
        """Squared norm of the loss's gradient with respect to the group, scalar."""
        weighted, scale = self._weighted(group)
        return weighted[:, -1, :, -1].sum() * scale**2

    def gradient_norms(self, group: str = "all") -> Tensor:
        """Norms of the per-sample gradients g_n with respect to the group, [N].

        Their squares are the diagonal of the gradients' Gram matrix, which the kernel gives for
        nothing.
        """
        weighted, _ = self._weighted(group)
        return weighted[:, -1, :, -1].diagonal().clamp(min=0.0).sqrt()

    def gradient_variance(self, group: str = "all") -> Tensor:
        """Total variance of the per-sample gradients: mean of |g_n - mean g|^2, scalar."""
        weighted, _ = self._weighted(group)
        gram = weighted[:, -1, :, -1]
        return (gram.diagonal().mean() - gram.mean()).clamp(min=0.0)

    def newton_step(
        self,
        group: str = "all",
        k: int | None = None,
        damping: Damping = 0.0,
        *,
        grad_samples: Sequence[int] | None = None,
        ggn_samples: Sequence[int] | None = None,
    ) -> dict[str, Tensor]:
        """Damped Newton step in the span of the k leading eigenvectors.

        Args:
            group: Parameter group.
            k: Number of directions; None for all that the batch determines.
            damping: A number, [K] numbers, or a function of (eigenvalues, gammas, lambdas).
            grad_samples: Samples of which the gradient is taken; None for all.
            ggn_samples: Samples of which the GGN is made; None for all.

        Returns:
            Parameter name -> step [*shape]: sum over k of -slope_k / (curvature_k + damping_k)
            e_k.
        """
        if k is not None and k <= self.num_directions:  # no step where the loss sees nothing
            k = min(k, len(self._indices(ggn_samples)) * (self._weighted(group)[0].shape[1] - 1))
        found = self.directions(group, k, grad_samples=grad_samples, ggn_samples=ggn_samples)
        steps = found.newton_coefficients(damping)
        values, vectors = self._eigenpairs(group, k, ggn_samples)
        known = steps != 0
        coefficients = self._output_coefficients(values[known], vectors[:, known], ggn_samples)
        total = (coefficients @ steps[known].to(coefficients.dtype)).unsqueeze(2)
        return {name: part[0] for name, part in self._vector_jacobian(group, total).items()}

    def explain(self) -> str:
        """What each layer cost: a table of order of contraction, time, memory and share."""
        return self._plan.table()

    def _block(self, group: str) -> _Block:
        if group not in self._blocks:
            raise OptionError(
                f"Unknown parameter group {group!r}. This evaluation has: "
                f"{', '.join(self._blocks)}."
            )
        return self._blocks[group]

    def _weighted(self, group: str) -> tuple[Tensor, float]:
        weighted = self._block(group).weighted
        if weighted is None or self.scale is None:
            raise OptionError(_NO_LOSS)
        return weighted, self.scale

    def _indices(self, samples: Sequence[int] | None) -> list[int]:
        if samples is None:
            return list(range(self.num_samples))
        found = [int(sample) for sample in samples]
        if not found or any(not 0 <= sample < self.num_samples for sample in found):
            raise OptionError(
                f"Got the sample subset {found}. Supported: at least one index from 0 to "
                f"{self.num_samples - 1}."
            )
        return found

    def _subset_scale(self, count: int) -> float:
        """Scale of a loss over a subset: a mean stays a mean, a sum stays an estimate of it."""
        assert self.scale is not None
        return self.scale * self.num_samples / count

    def _gram(self, group: str, samples: Sequence[int] | None) -> Tensor:
        weighted, _ = self._weighted(group)
        kept = self._indices(samples)
        if samples is not None:
            weighted = weighted[kept][:, :, kept]
        part = weighted[:, :-1, :, :-1]
        size = part.shape[0] * part.shape[1]
        return part.reshape(size, size) * self._subset_scale(len(kept))

    def _eigenpairs(
        self, group: str, k: int | None, samples: Sequence[int] | None
    ) -> tuple[Tensor, Tensor]:
        key = (group, _key(samples))
        kept = self._pairs.get(key)
        if kept is None or k is None or not 1 <= k <= kept[0].numel():
            kept = gram_eigenpairs(self._gram(group, samples), k)
            self._pairs[key] = kept
        values, vectors = kept
        return (values, vectors) if k is None else (values[-k:], vectors[:, -k:])

    def _output_coefficients(
        self, values: Tensor, vectors: Tensor, samples: Sequence[int] | None
    ) -> Tensor:
        """Weights [N, D, K] of the Jacobian rows whose sums are the eigenvectors."""
        assert self._root is not None
        kept = self._indices(samples)
        root = self._root[kept]
        scale = self._subset_scale(len(kept))
        parts = vectors.reshape(len(kept), -1, values.numel())
        some = torch.bmm(root, parts) * (scale / values).sqrt()
        if samples is None:
            return some
        whole = some.new_zeros(self.num_samples, *some.shape[1:])
        whole.index_add_(0, torch.tensor(kept, device=whole.device), some)
        return whole

    def _vector_jacobian(self, group: str, coefficients: Tensor) -> dict[str, Tensor]:
        """Sums of Jacobian rows with weights [N, D, K], by the factors or K backward passes."""
        names = self._block(group).names
        if self._factors is not None:
            weights = coefficients.to(self._live_outputs.dtype)
            if self._basis is not None:
                weights = torch.einsum("de,ndk->nek", self._basis, weights)
            return {
                name: self._factors[name].weighted_sum(weights)
                if name in self._factors
                else self._zeros(name, weights.shape[2])
                for name in names
            }
        parameters = [self._tape.parameters[name] for name in names]
        shape = self._live_outputs.shape
        columns = torch.stack(
            [self._layout.unflatten(part, shape) for part in coefficients.unbind(2)]
        ).to(self._live_outputs.dtype)
        grads = batched_grad([self._live_outputs], parameters, [columns])
        return {
            name: self._zeros(name, columns.shape[0]) if grad is None else grad
            for name, grad in zip(names, grads, strict=True)
        }

    def _zeros(self, name: str, count: int) -> Tensor:
        parameter = self._tape.parameters[name]
        return torch.zeros(count, *parameter.shape, dtype=parameter.dtype, device=parameter.device)


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

    Returns:
        The evaluation. Costs one forward pass, D backward passes in one batch (``mc``:
        mc_samples + 1), and the contraction.

    Raises:
        OptionError: Unknown option value.
        ProblemError: The problem is not supported; the message says what is.
    """
    if columns not in COLUMNS:
        raise OptionError(f"Unknown columns {columns!r}. Supported: {', '.join(COLUMNS)}.")
    session = _session(backend, columns)
    groups = resolve_groups(param_groups, problem.trainable())
    wanted = [name for names in groups.values() for name in names]
    with problem.recorded(wanted, session) as recording:
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
                blocks[group] = _Block(names, None, block.to(small))
            elif root is None or gradient is None:
                blocks[group] = _Block(names, block, None)
            elif basis is None:
                blocks[group] = _Block(names, block, weigh_kernel(block, root, gradient))
            else:
                seen = basis.to(small)
                weighted = weigh_kernel(block, seen.T @ root, gradient @ seen)
                blocks[group] = _Block(names, None, weighted)
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


def _key(samples: Sequence[int] | None) -> tuple[int, ...] | None:
    return None if samples is None else tuple(samples)


__all__ = ["COLUMNS", "Evaluation", "cross_kernel", "evaluate"]
