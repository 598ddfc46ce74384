"""The linearised model's own Hessian, and directional derivatives of one sample's loss.

The GGN of a loss is the Hessian of the loss of the linearised model. The loss is called as the
user calls it, on the whole batch with its own reduction, so every factor of scaling is checked.
gamma and lambda are literally the first and the second derivative of the loss along a direction
when only one sample's outputs move. Nothing here knows a kernel, a Gram matrix or a loss Hessian.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from zoo import build

Loss = Callable[[Tensor, Any], Tensor]


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def explicit_jacobian(model: nn.Module, inputs: Sequence[Tensor]) -> Tensor:
    """[N, D, P]: each sample alone in the batch, each output by its own backward pass."""
    parameters = list(trainable(model).values())
    samples = []
    for n in range(len(inputs[0])):
        outputs = model(*(part[n : n + 1] for part in inputs)).flatten()
        rows = []
        for value in outputs:
            grads = torch.autograd.grad(
                value, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            rows.append(torch.cat([grad.flatten() for grad in grads]))
        samples.append(torch.stack(rows))
    return torch.stack(samples).detach()


@cache
def zoo_jacobian(name: str) -> Tensor:
    return explicit_jacobian(*build(name))


class Linearised:
    """A loss of outputs that move linearly with the parameters."""

    def __init__(self, outputs: Tensor, jacobian: Tensor, loss: Loss, targets: Any) -> None:
        """Linearise at the outputs [N, ...] with the Jacobian [N, D, P]."""
        self.outputs, self.jacobian = outputs.detach(), jacobian
        self.num_samples, self.depth, self.size = jacobian.shape
        self._loss, self._targets = loss, targets
        start = torch.zeros(self.size, dtype=outputs.dtype)
        hessian = torch.autograd.functional.hessian(self._moved, start, vectorize=True)
        self.ggn = hessian.detach()  # [P, P]
        start.requires_grad_()
        (gradient,) = torch.autograd.grad(self._moved(start), start)
        self.gradient = gradient  # [P]
        values, vectors = np.linalg.eigh(self.ggn.numpy())
        self.values, self.vectors = torch.from_numpy(values), torch.from_numpy(vectors)

    def _moved(self, change: Tensor) -> Tensor:
        shift = (self.jacobian.flatten(0, 1) @ change).reshape(self.outputs.shape)
        return self._loss(self.outputs + shift, self._targets)

    def separated(self, limit: int = 3) -> int:
        """The largest k <= limit whose leading eigenvalues are each well separated."""
        top = self.values.flip(0)
        k = 0
        while k < min(limit, len(top) - 1):
            if top[k] - top[k + 1] < 1e-3 * top[0] or top[k] < 1e-4 * top[0]:
                break
            k += 1
        return k

    def top(self, k: int) -> Tensor:
        """[P, k], ascending."""
        return self.vectors[:, -k:]

    def derivatives(self, directions: Tensor) -> tuple[Tensor, Tensor]:
        """First and second derivatives [N, K] of the loss when one sample moves along e_k."""
        seen = torch.einsum("ndp,pk->nkd", self.jacobian, directions)
        n, k = seen.shape[:2]
        first, second = torch.zeros(n, k), torch.zeros(n, k)
        first, second = first.to(seen), second.to(seen)
        for sample in range(n):
            for place in range(k):
                step = torch.zeros((), dtype=seen.dtype, requires_grad=True)
                shift = torch.zeros(n, self.depth, dtype=seen.dtype)
                shift[sample] = seen[sample, place]
                moved = self.outputs + step * shift.reshape(self.outputs.shape)
                (slope,) = torch.autograd.grad(
                    self._loss(moved, self._targets), step, create_graph=True
                )
                first[sample, place] = slope.detach()
                if slope.requires_grad:
                    (bend,) = torch.autograd.grad(slope, step, materialize_grads=True)
                    second[sample, place] = bend
        return first, second

    def newton_step(self, k: int, damping: float) -> Tensor:
        """[P]: -sum_k slope_k / (curvature_k + damping) e_k."""
        slopes, bends = self.derivatives(self.top(k))
        return -self.top(k) @ (slopes.sum(0) / (bends.sum(0) + damping))
