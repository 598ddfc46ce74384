"""BackPACK extensions `ViViTGGNExact` and `ViViTGGNMC`.

Choose them inside a BackPACK program: ``with backpack(ViViTGGNExact()): loss.backward()`` leaves
in every parameter a dict of functions of the GGN's factor V (G = V V^T). They propagate what
BackPACK's own SqrtGGN propagates, through the same layers, and hand the layer's columns to the
same factors and contractions as the rest of this package.

Reference: Dangel, Tatzel and Hennig 2022 (arXiv:2106.02624), section 2.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from backpack.extensions.secondorder.hbp import LossHessianStrategy
from backpack.extensions.secondorder.sqrt_ggn import (
    SqrtGGN,
    batchnorm_nd,
    convnd,
    convtransposend,
    embedding,
    linear,
)
from torch import Tensor, nn

from lightning_vivit.backpack.layers import layer_factor
from lightning_vivit.errors import ProblemError
from lightning_vivit.factors import Factor, contract

Quantities = dict[str, Any]


class ViViTGGN(SqrtGGN):
    """Base of the two extensions.

    The savefield of each parameter holds a dict:

    - ``gram_mat()``: V^T V, [C, N, C, N];
    - ``V_mat_prod(mat)``: V times vectors, [K, C, N] -> [K, *shape];
    - ``V_t_mat_prod(mat)``: V^T times vectors, [K, *shape] -> [K, C, N];
    - ``factor``: the structured rows themselves;
    - ``gradient_factor(samples)``: rows of the loss's gradients, one per sample, for the given
      samples (None for all), with the loss's 1/N, but without what the loss was multiplied with
      before its backward pass (a GradScaler's scale), as V has none of it either. To be called in
      the extension hook: afterwards BackPACK has dropped the layer's input.

    A parameter that two layers share is refused, since the terms between its uses would be lost.
    """

    def __init__(self, strategy: str, savefield: str, subsampling: list[int] | None) -> None:
        """Use BackPACK's propagation and our parameter functions.

        Args:
            strategy: How the loss Hessian is represented.
            savefield: Name of the attribute in each parameter.
            subsampling: Indices of the samples that V is made of; None for all.
        """
        super().__init__(strategy, savefield, subsampling)
        self._owners: dict[int, weakref.ref[nn.Module]] = {}
        self.loss_scale: Tensor | None = None  # d(what is differentiated) / d(the extended loss)
        for layer, extension in _layer_extensions().items():
            self.set_module_extension(layer, extension, overwrite=True)

    def __call__(
        self, module: nn.Module, g_inp: tuple[Tensor, ...], g_out: tuple[Tensor, ...]
    ) -> None:
        """Process one module of the backward pass (BackPACK calls it)."""
        if isinstance(module, nn.modules.loss._Loss):
            self.loss_scale = g_out[0].detach()
        super().__call__(module, g_inp, g_out)

    def claim(self, parameter: nn.Parameter, layer: nn.Module) -> None:
        """Note that a parameter belongs to a layer.

        Args:
            parameter: The parameter.
            layer: The layer that uses it.

        Raises:
            ProblemError: Another layer uses it, too.
        """
        known = self._owners.get(id(parameter), lambda: None)()
        if known is None or all(own is not parameter for own in known.parameters(recurse=False)):
            self._owners[id(parameter)] = weakref.ref(layer)
        elif known is not layer:
            raise ProblemError(
                f"A parameter of shape {tuple(parameter.shape)} is shared by two layers "
                f"({type(known).__name__} and {type(layer).__name__}), and BackPACK would lose the "
                "terms between its uses. Use the autograd functions of lightning_vivit, which add "
                "them."
            )


class ViViTGGNExact(ViViTGGN):
    """V of the exact GGN, under the savefield ``vivit_ggn_exact``; C is the number of outputs."""

    def __init__(self, subsampling: list[int] | None = None) -> None:
        """Choose the samples.

        Args:
            subsampling: Indices of the samples that V is made of; None for all.
        """
        super().__init__(LossHessianStrategy.EXACT, "vivit_ggn_exact", subsampling)


class ViViTGGNMC(ViViTGGN):
    """V of a Monte-Carlo GGN, under ``vivit_ggn_mc``; C is the number of draws per sample."""

    def __init__(self, mc_samples: int = 1, subsampling: list[int] | None = None) -> None:
        """Choose the number of draws and the samples.

        Args:
            mc_samples: Draws for each sample.
            subsampling: Indices of the samples that V is made of; None for all.
        """
        self._mc_samples = mc_samples
        super().__init__(LossHessianStrategy.SAMPLING, "vivit_ggn_mc", subsampling)

    def get_num_mc_samples(self) -> int:
        """Draws for each sample (BackPACK asks for it)."""
        return self._mc_samples


class _Quantities:
    """Replaces BackPACK's parameter functions: nothing of the parameter's size is formed."""

    def weight(self, ext: Any, module: Any, g_inp: Any, g_out: Any, backproped: Any) -> Quantities:
        return _quantities("weight", ext, module, g_out, backproped)

    def bias(self, ext: Any, module: Any, g_inp: Any, g_out: Any, backproped: Any) -> Quantities:
        return _quantities("bias", ext, module, g_out, backproped)


def _quantities(
    name: str, ext: ViViTGGN, module: nn.Module, g_out: tuple[Tensor, ...], columns: Tensor
) -> Quantities:
    ext.claim(getattr(module, name), module)
    scale = ext.loss_scale
    factor = layer_factor(module, name, columns, ext.get_subsampling())

    def gradient_factor(samples: Sequence[int] | None = None) -> Factor:
        gradient = g_out[0] if scale is None else g_out[0] / scale
        return layer_factor(module, name, gradient.unsqueeze(0), samples, samples_seen=False)

    return {"factor": factor, "gradient_factor": gradient_factor, **_functions(factor)}


def _functions(factor: Factor) -> dict[str, Callable[..., Tensor]]:
    def gram_mat() -> Tensor:
        return contract(factor, factor).permute(1, 0, 3, 2)

    def v_mat_prod(mat: Tensor) -> Tensor:
        return factor.weighted_sum(mat.permute(2, 1, 0))

    def v_t_mat_prod(mat: Tensor) -> Tensor:
        return factor.products(mat).permute(2, 1, 0)

    return {"gram_mat": gram_mat, "V_mat_prod": v_mat_prod, "V_t_mat_prod": v_t_mat_prod}


class _Linear(_Quantities, linear.SqrtGGNLinear):
    pass


class _Conv1d(_Quantities, convnd.SqrtGGNConv1d):
    pass


class _Conv2d(_Quantities, convnd.SqrtGGNConv2d):
    pass


class _Conv3d(_Quantities, convnd.SqrtGGNConv3d):
    pass


class _ConvTranspose1d(_Quantities, convtransposend.SqrtGGNConvTranspose1d):
    pass


class _ConvTranspose2d(_Quantities, convtransposend.SqrtGGNConvTranspose2d):
    pass


class _ConvTranspose3d(_Quantities, convtransposend.SqrtGGNConvTranspose3d):
    pass


class _BatchNorm(_Quantities, batchnorm_nd.SqrtGGNBatchNormNd):
    pass


class _Embedding(_Quantities, embedding.SqrtGGNEmbedding):
    pass


def _layer_extensions() -> dict[type[nn.Module], Any]:
    return {
        torch.nn.Linear: _Linear(),
        torch.nn.Conv1d: _Conv1d(),
        torch.nn.Conv2d: _Conv2d(),
        torch.nn.Conv3d: _Conv3d(),
        torch.nn.ConvTranspose1d: _ConvTranspose1d(),
        torch.nn.ConvTranspose2d: _ConvTranspose2d(),
        torch.nn.ConvTranspose3d: _ConvTranspose3d(),
        torch.nn.BatchNorm1d: _BatchNorm(),
        torch.nn.BatchNorm2d: _BatchNorm(),
        torch.nn.BatchNorm3d: _BatchNorm(),
        torch.nn.Embedding: _Embedding(),
    }


__all__ = ["ViViTGGN", "ViViTGGNExact", "ViViTGGNMC"]
