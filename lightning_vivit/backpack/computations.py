"""The computations that ViViT users know, for BackPACK programs.

Each gives an extension and an extension hook for ``with backpack(...)``; the results are there
after the backward pass. Signatures and meanings are those of vivit-for-pytorch 1.0.0. Different:
any number of Monte-Carlo samples also for the two directional computations; per-sample gradients
come from the backward pass itself instead of a second extension, free of what the loss was
multiplied with before it; a hook serves any number of backward passes; a parameter that two layers
share, and ``reduction="sum"`` where the scaling needs the mean, are errors; the Newton step is a
tuple; ``verbose`` logs (logger ``lightning_vivit.computations``, level INFO) instead of printing.

The loss must have ``reduction="mean"``; eigenvalues and eigenvectors of all samples work for a sum.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_vivit.backpack.computation import Computation, GroupBlock
from lightning_vivit.backpack.vivit import ViViTGGN


class EigvalshComputation(Computation):
    """Eigenvalues of the GGN's blocks.

    Args:
        subsampling: Indices of the samples that the GGN is made of; None for all.
        mc_samples: 0 for the exact loss Hessian, else Monte-Carlo draws per sample.
        verbose: Log what is done.
    """

    def __init__(
        self, subsampling: list[int] | None = None, mc_samples: int = 0, verbose: bool = False
    ) -> None:
        super().__init__(subsampling, mc_samples, verbose, 0.0)

    def get_extension(self) -> ViViTGGN:
        """The extension to pass to ``backpack``."""
        return self._make_extension()

    def _finish(self, block: GroupBlock) -> Tensor:
        """Eigenvalues [C*N], ascending."""
        return torch.linalg.eigvalsh(block.square()[0])


class EighComputation(Computation):
    """Eigenvalues and eigenvectors of the GGN's blocks.

    ``get_result(group)`` gives the eigenvalues [K] that the group's ``criterion`` (eigenvalues,
    ascending -> indices) keeps, and for each parameter its part of the eigenvectors [K, *shape].

    Args:
        subsampling: Indices of the samples that the GGN is made of; None for all.
        mc_samples: 0 for the exact loss Hessian, else Monte-Carlo draws per sample.
        verbose: Log what is done.
        warn_small_eigvals: Warn about eigenvalues below this; 0 never warns.
    """

    _needs = ("params", "criterion")
    _keeps_factors = True

    def __init__(
        self,
        subsampling: list[int] | None = None,
        mc_samples: int = 0,
        verbose: bool = False,
        warn_small_eigvals: float = 1e-4,
    ) -> None:
        super().__init__(subsampling, mc_samples, verbose, warn_small_eigvals)

    def get_extension(self) -> ViViTGGN:
        """The extension to pass to ``backpack``."""
        return self._make_extension()

    def _finish(self, block: GroupBlock) -> tuple[Tensor, list[Tensor]]:
        values, vectors, correction = self._eigenpairs(block)
        parts = self._to_parameters(block, vectors, correction)
        norm = (
            torch.stack([part.reshape(len(part), -1).square().sum(1) for part in parts])
            .sum(0)
            .sqrt()
        )
        return values, [part / norm.reshape(-1, *[1] * (part.ndim - 1)) for part in parts]


class DirectionalDerivativesComputation(Computation):
    """First- and second-order derivatives of every sample along GGN eigenvectors.

    ``get_result(group)`` gives gammas [N', K] and lambdas [N, K] along the eigenvectors that the
    group's ``criterion`` keeps.

    Args:
        subsampling_grad: Indices of the samples of the gammas; None for all.
        subsampling_ggn: Indices of the samples that the GGN is made of; None for all.
        mc_samples_ggn: 0 for the exact loss Hessian, else Monte-Carlo draws per sample.
        verbose: Log what is done.
        warn_small_eigvals: Warn about eigenvalues below this; 0 never warns.
    """

    _needs: tuple[str, ...] = ("params", "criterion")
    _wants_gradients = True

    def __init__(
        self,
        subsampling_grad: list[int] | None = None,
        subsampling_ggn: list[int] | None = None,
        mc_samples_ggn: int = 0,
        verbose: bool = False,
        warn_small_eigvals: float = 1e-4,
    ) -> None:
        super().__init__(
            subsampling_ggn, mc_samples_ggn, verbose, warn_small_eigvals, subsampling_grad
        )

    def get_extensions(self) -> list[ViViTGGN]:
        """The extensions to pass to ``backpack``."""
        return [self._make_extension()]

    def _finish(self, block: GroupBlock) -> tuple[Tensor, Tensor]:
        return self._directions(block, *self._eigenpairs(block))


class DirectionalDampedNewtonComputation(DirectionalDerivativesComputation):
    """Newton step along GGN eigenvectors with a damping for each direction.

    ``get_result(group)`` gives the step, one tensor for each parameter: the sum over k of
    -gamma_k / (lambda_k + delta_k) e_k with the means of gammas and lambdas over their samples and
    delta = ``group["damping"](eigenvalues, Gram eigenvectors, gammas, lambdas)``.

    Args:
        subsampling_grad: Indices of the samples of the gradient; None for all.
        subsampling_ggn: Indices of the samples that the GGN is made of; None for all.
        mc_samples_ggn: 0 for the exact loss Hessian, else Monte-Carlo draws per sample.
        verbose: Log what is done.
        warn_small_eigvals: Warn about eigenvalues below this; 0 never warns.
    """

    _needs = ("params", "criterion", "damping")
    _keeps_factors = True

    def _finish(self, block: GroupBlock) -> Any:
        values, vectors, correction = self._eigenpairs(block)
        gammas, lambdas = self._directions(block, values, vectors, correction)
        damping = block.group["damping"](values, vectors, gammas, lambdas)
        steps = -gammas.mean(0) / (lambdas.mean(0) + damping)
        weights = (vectors @ (steps / values.sqrt())).unsqueeze(1)
        return tuple(part[0] for part in self._to_parameters(block, weights, correction))
