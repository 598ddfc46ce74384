"""Vectors over parameters, and a microbatch that can be multiplied with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_vivit.losses import SampleLoss
from lightning_vivit.matrixfree.linear import Linearization, not_twice
from lightning_vivit.samples.layout import SampleLayout


@dataclass(frozen=True)
class Space:
    """Vectors over some parameters, flat [K, P] or by name.

    Attributes:
        shapes: Parameter name -> shape, in the order of the entries.
    """

    shapes: Mapping[str, torch.Size]

    @property
    def size(self) -> int:
        """P."""
        return sum(shape.numel() for shape in self.shapes.values())

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """[K, P] to name -> [K, *shape], as views."""
        parts = flat.split([shape.numel() for shape in self.shapes.values()], dim=1)
        return {
            name: part.reshape(flat.shape[0], *shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def join(self, parts: Mapping[str, Tensor]) -> Tensor:
        """Name -> [K, *shape] to [K, P]."""
        return torch.cat([parts[name].reshape(len(parts[name]), -1) for name in self.shapes], dim=1)


@dataclass(frozen=True)
class LivePart:
    """One microbatch with its graph.

    Attributes:
        linear: Jacobian products of its outputs.
        layout: Its samples in its outputs.
        loss: Its per-sample loss.
        gradients: Gradients of its loss with a graph (only for the Hessian), by name.
        start: Its first sample in the batch.
    """

    linear: Linearization
    layout: SampleLayout
    loss: SampleLoss
    gradients: dict[str, Tensor]
    start: int

    def outputs_of(self, pushed: Tensor) -> Tensor:
        """J v [K, *outputs shape] as [N, D, K]."""
        if pushed.shape[0] == 1:
            return self.layout.flatten(pushed[0]).unsqueeze(2)
        return torch.stack([self.layout.flatten(column) for column in pushed], dim=2)

    def columns_of(self, outputs: Tensor) -> Tensor:
        """[N, D, K] as columns [K, *outputs shape]."""
        shape = self.linear.outputs.shape
        if outputs.shape[2] == 1:
            return self.layout.unflatten(outputs[:, :, 0], shape).unsqueeze(0)
        return torch.stack([self.layout.unflatten(part, shape) for part in outputs.unbind(2)])


def is_own(pushed: Tensor, vectors: Tensor) -> bool:
    """Whether the memory of J v is its own: not that of v, and not expanded."""
    storage = pushed.untyped_storage().data_ptr()
    return pushed.is_contiguous() and storage != vectors.untyped_storage().data_ptr()


def live_gradients(total: Tensor, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Gradients of a loss with their graph, without those that depend on nothing."""
    try:
        grads = torch.autograd.grad(
            total, list(parameters.values()), create_graph=True, allow_unused=True
        )
    except RuntimeError as error:
        raise not_twice(error) from error
    return {
        name: grad
        for name, grad in zip(parameters, grads, strict=True)
        if grad is not None and grad.requires_grad
    }
