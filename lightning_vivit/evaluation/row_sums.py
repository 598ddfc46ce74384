"""Weighted sums of the rows of a Jacobian: vectors in parameter space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_vivit.factors import Factor
from lightning_vivit.parallel import Whole
from lightning_vivit.problem.problem import Recording
from lightning_vivit.problem.tape.cotangents import batched_grad
from lightning_vivit.samples.layout import SampleLayout


class RowSums:
    """Sums sum_nd w_nd dz_nd/dtheta, from the factors of the kernel or by backward passes.

    Attributes:
        factors: Parameter name -> factor of the kernel's columns; None if not all were kept.
    """

    def __init__(
        self,
        recording: Recording,
        layout: SampleLayout,
        factors: Mapping[str, Factor] | None,
        basis: Tensor | None,
        whole: Whole | None,
    ) -> None:
        """Keep what was recorded.

        Args:
            recording: The forward pass.
            layout: Of its outputs.
            factors: Of columns that are the same for all samples, if all were kept.
            basis: The factors' columns, [D, D']; None for all outputs.
            whole: All ranks' samples; what was recorded are this rank's.
        """
        self.factors = factors
        self._parameters = recording.tape.parameters
        self._outputs = recording.outputs
        self._layout = layout
        self._basis = basis
        self._whole = whole

    def of(self, names: Sequence[str], weights: Tensor) -> dict[str, Tensor]:
        """K sums over all samples.

        Args:
            names: Parameters.
            weights: w, [N, D, K].

        Returns:
            Parameter name -> [K, *shape]. Costs K backward passes, or products with the factors.
        """
        if self._whole is None:
            return self._recorded(names, weights)
        found = self._recorded(names, self._whole.own(weights))
        found = {name: part.contiguous() for name, part in found.items()}
        self._whole.add_up(found)
        return found

    def _recorded(self, names: Sequence[str], weights: Tensor) -> dict[str, Tensor]:
        """The same over the samples that were recorded here."""
        dtype, count = self._outputs.dtype, weights.shape[2]
        if self.factors is not None:
            weights = weights.to(dtype)
            if self._basis is not None:
                weights = torch.einsum("de,ndk->nek", self._basis, weights)
            return {
                name: self.factors[name].weighted_sum(weights)
                if name in self.factors
                else self._zeros(name, count)
                for name in names
            }
        parameters = [self._parameters[name] for name in names]
        shape = self._outputs.shape
        columns = [self._layout.unflatten(part, shape) for part in weights.unbind(2)]
        grads = batched_grad([self._outputs], parameters, [torch.stack(columns).to(dtype)])
        return {
            name: self._zeros(name, count) if grad is None else grad
            for name, grad in zip(names, grads, strict=True)
        }

    def _zeros(self, name: str, count: int) -> Tensor:
        parameter = self._parameters[name]
        return parameter.new_zeros(count, *parameter.shape)
