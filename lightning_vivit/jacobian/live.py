"""Vectors over parameters, and samples of a batch whose graph can be multiplied with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lightning_vivit.jacobian.linearization import Linearization, not_twice
from lightning_vivit.losses import SampleLoss
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
    """Samples of a batch with the graph of their forward pass.

    Attributes:
        linear: Jacobian products of their outputs.
        layout: Where the samples are in the outputs.
        loss: Their losses l_n, such that the whole batch's loss is ``scale * sum_n l_n``.
        scale: That of the whole batch.
        start: The first sample's place in the batch.
        total: What they add to the whole batch's loss, graph attached; None where no matrix
            differentiates it.
    """

    linear: Linearization
    layout: SampleLayout
    loss: SampleLoss
    scale: float
    start: int = 0
    total: Tensor | None = None

    @property
    def samples(self) -> slice:
        """Which samples of the batch they are."""
        return slice(self.start, self.start + self.layout.num_samples)

    def push(self, space: Space, vectors: Tensor) -> Tensor:
        """J v for K vectors, [K, P] to [N, D, K]."""
        return self.outputs_of(self.linear.jacobian_vector(space.split(vectors)))

    def pull(self, space: Space, columns: Tensor) -> Tensor:
        """J^T w for K columns, [N, D, K] to [K, P] in memory of its own."""
        found = self.linear.vector_jacobian(self.columns_of(columns), list(space.shapes))
        return space.join(found)

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

    @cached_property
    def gradients(self) -> dict[str, Tensor]:
        """Gradients of `total` with their graph, by name, without those that depend on nothing."""
        assert self.total is not None
        parameters = self.linear.parameters
        try:
            grads = torch.autograd.grad(
                self.total, list(parameters.values()), create_graph=True, allow_unused=True
            )
        except RuntimeError as error:
            raise not_twice(error) from error
        return {
            name: grad
            for name, grad in zip(parameters, grads, strict=True)
            if grad is not None and grad.requires_grad
        }


def is_own(pushed: Tensor, vectors: Tensor) -> bool:
    """Whether the memory of J v is its own: not that of v, and not expanded."""
    storage = pushed.untyped_storage().data_ptr()
    return pushed.is_contiguous() and storage != vectors.untyped_storage().data_ptr()
