"""What a loss makes of the Jacobian's rows: the columns of V and the gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_vivit.errors import ProblemError
from lightning_vivit.evaluation.solved import Block
from lightning_vivit.jacobian.columns import own_columns, shared_columns, unit_columns
from lightning_vivit.losses import SampleLoss
from lightning_vivit.machine.numbers import all_finite
from lightning_vivit.matrices import Matrix
from lightning_vivit.parallel import Whole
from lightning_vivit.samples.layout import SampleLayout


@dataclass(frozen=True)
class Weights:
    """Weights of a sample's outputs, and which columns stand for its outputs.

    Attributes:
        root: S_n, [N, D, M].
        gradient: r_n, [N, D].
        basis: Columns [D, D'] in place of all outputs; None for all outputs, or for S_n and r_n.
        own_columns: Whether S_n and r_n themselves are backpropagated.
        root_is_gradient: Whether S_n is r_n, which is then backpropagated once.
        directions: Columns of S_n, those that the loss does not see included.
        scale: The loss is ``scale * sum_n l_n``.
    """

    root: Tensor
    gradient: Tensor
    basis: Tensor | None
    own_columns: bool
    root_is_gradient: bool
    directions: int
    scale: float

    @classmethod
    def of(
        cls, loss: SampleLoss, matrix: Matrix, own: bool, kernel: bool, dtype: torch.dtype
    ) -> Weights:
        """The weights of a matrix.

        Args:
            loss: Of all samples.
            matrix: Has rows.
            own: Whether the matrix's own columns are backpropagated.
            kernel: If not, whether the kernel of all outputs is wanted.
            dtype: Of the weights.

        Raises:
            ProblemError: Gradient or Hessian of the loss is not finite.
        """
        gradient = _finite(loss.gradient(), "gradient").to(dtype)
        root = _finite(matrix.root(loss), "Hessian").to(dtype)
        directions = root.shape[2]
        basis = None if own else matrix.basis(loss)
        if basis is not None and directions > basis.shape[1]:
            root = _narrow_root(root, basis.to(dtype))
        basis, same = None if kernel else basis, matrix.root_is_gradient
        return cls(root, gradient, basis, own, same, directions, loss.scale)

    def columns(self) -> Tensor:
        """S_n and r_n, [N, D, M+1], or [N, D, 1] where they are the same."""
        gradient = self.gradient.unsqueeze(2)
        return gradient if self.root_is_gradient else torch.cat([self.root, gradient], dim=2)

    def block(self, names: list[str], kernel: Tensor) -> Block:
        """What a group contributes.

        Args:
            names: Its parameters.
            kernel: Of the columns that were backpropagated.
        """
        if self.own_columns:
            kernel, count = kernel.to(self.root.dtype), kernel.shape[0]
            if self.root_is_gradient:
                kernel = kernel.expand(count, 2, count, 2)
            return Block(names, None, kernel)
        if self.basis is None:
            return Block(names, kernel, weigh_kernel(kernel, self.root, self.gradient))
        seen = self.basis.to(self.root.dtype)
        return Block(names, None, weigh_kernel(kernel, seen.T @ self.root, self.gradient @ seen))


def cotangents(
    outputs: Tensor, layout: SampleLayout, weights: Weights | None, whole: Whole | None
) -> Tensor:
    """The columns that are backpropagated, [D', *outputs shape].

    Args:
        outputs: The outputs that were recorded here.
        layout: Theirs.
        weights: Of all samples; None without a loss.
        whole: All ranks' samples, of which some were recorded here.
    """
    if weights is not None and weights.own_columns:
        columns = weights.columns()
        return own_columns(outputs, layout, columns if whole is None else whole.own(columns))
    if weights is not None and weights.basis is not None:
        return shared_columns(outputs, layout, weights.basis)
    return unit_columns(outputs, layout)


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
