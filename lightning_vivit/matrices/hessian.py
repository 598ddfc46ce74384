"""The Hessian of the loss itself."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from lightning_vivit.jacobian.linearization import graph_grad
from lightning_vivit.jacobian.live import LivePart, Space
from lightning_vivit.matrices.matrix import Matrix


class Hessian(Matrix):
    """The second derivatives of the loss as the training step returns it, penalties included.

    Its products are derivatives of the gradient (Pearlmutter 1994). Eigenvalues of both signs.
    """

    name = "hessian"
    title = "Hessian"
    source = "[Cohen et al. 2021](https://arxiv.org/abs/2103.00065)"
    readings: ClassVar = {
        "eigenvalue_i": "μ₁ is the sharpness; far above `ggn/eigenvalue_1`: the part that the GGN "
        "leaves out matters",
    }
    semidefinite = False
    linearised = False
    has_rows = False
    has_directions = False

    def multiply(self, part: LivePart, space: Space, vectors: Tensor) -> Tensor:
        """A backward pass through the gradient; see `Matrix.multiply`."""
        parameters = [part.linear.parameters[name] for name in space.shapes]
        block = space.split(vectors)
        names = [name for name in space.shapes if name in part.gradients]
        grads: list[Tensor | None] = [None] * len(parameters)
        if names:
            live = [part.gradients[name] for name in names]
            grads = graph_grad(live, parameters, [block[name] for name in names])
        return space.join(
            {
                name: block[name].new_zeros(block[name].shape) if grad is None else grad
                for name, grad in zip(space.shapes, grads, strict=True)
            }
        )
