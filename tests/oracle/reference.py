"""Independent routes to the same quantities: explicit Jacobians and dense matrices.

The Jacobian of each sample comes from a forward pass of that sample alone and one backward pass
for each output. The GGN is J^T H J with H the Hessian of torch's own loss, reduced as the user
reduces it, with respect to all outputs of the batch at once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from oracle.networks import Case
from torch import Tensor


@cache
def case(name: str) -> Case:
    return Case(name)


def names(model: torch.nn.Module) -> list[str]:
    return [name for name, p in model.named_parameters() if p.requires_grad]


@cache
def jacobian(name: str) -> Tensor:
    """[N, D, P]."""
    found = case(name)
    parameters = [p for p in found.model.parameters() if p.requires_grad]
    samples = []
    for n in range(len(found.inputs)):
        outputs = found.model(found.inputs[n : n + 1]).flatten()
        rows = []
        for value in outputs:
            grads = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
            parts = [
                torch.zeros_like(p) if grad is None else grad
                for p, grad in zip(parameters, grads, strict=True)
            ]
            rows.append(torch.cat([part.flatten() for part in parts]))
        samples.append(torch.stack(rows))
    return torch.stack(samples).detach()


def parameter_slices(name: str) -> dict[str, slice]:
    """Where each parameter is in the parameter vector."""
    places, start = {}, 0
    for key, p in case(name).model.named_parameters():
        if p.requires_grad:
            places[key] = slice(start, start + p.numel())
            start += p.numel()
    return places


class Reference:
    """GGN, gradients and Hessians of a loss on a network's batch."""

    def __init__(self, name: str, loss: Callable[[Tensor], Tensor], scale: float) -> None:
        """Differentiate.

        Args:
            name: The network.
            loss: outputs [N, ...] -> the reduced loss.
            scale: The loss is scale * sum_n l_n.
        """
        found = case(name)
        self.jacobian = jacobian(name)  # [N, D, P]
        outputs = found.model(found.inputs).detach()
        self.shape = outputs.shape
        n, d = outputs.shape[0], outputs[0].numel()
        flat = outputs.flatten().requires_grad_()
        hessian = torch.autograd.functional.hessian(
            lambda value: loss(value.reshape(self.shape)), flat
        ).detach()
        (gradient,) = torch.autograd.grad(loss(flat.reshape(self.shape)), flat)
        rows = self.jacobian.flatten(0, 1)
        self.ggn = rows.T @ hessian @ rows  # [P, P]
        self.gradient = rows.T @ gradient  # [P]
        blocks = hessian.reshape(n, d, n, d)
        own = torch.stack([blocks[i, :, i] for i in range(n)]) / scale  # H_n
        self.sample_gradients = torch.einsum(
            "ndp,nd->np", self.jacobian, gradient.reshape(n, d) / scale
        )
        self.sample_hessians = own
        values, vectors = torch.linalg.eigh(self.ggn)
        self.values, self.vectors = values, vectors

    def eigenvalues(self, count: int) -> Tensor:
        """The `count` largest, ascending, zeros in front if there are fewer."""
        values = self.values[-count:]
        return torch.cat([values.new_zeros(count - values.numel()), values])

    def separated(self, limit: int = 4, gap: float = 1e-3) -> int:
        """The largest k <= limit for which all k leading eigenvalues are well separated."""
        top = self.values.flip(0)
        k = 0
        while k < limit and k + 1 < top.numel():
            if top[k] - top[k + 1] < gap * top[0] or top[k] < 1e-6 * top[0]:
                break
            k += 1
        return k

    def gammas(self, k: int) -> Tensor:
        """[N, k], ascending in the eigenvalues, signs free."""
        return self.sample_gradients @ self.vectors[:, -k:]

    def lambdas(self, k: int) -> Tensor:
        """[N, k]."""
        seen = torch.einsum("ndp,pk->ndk", self.jacobian, self.vectors[:, -k:])
        return torch.einsum("ndk,nde,nek->nk", seen, self.sample_hessians, seen)

    def newton_step(self, k: int, damping: float) -> Tensor:
        """[P]."""
        top = self.vectors[:, -k:]
        return -top @ ((top.T @ self.gradient) / (self.values[-k:] + damping))
