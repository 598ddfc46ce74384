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

import logging
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_vivit.backpack.vivit import ViViTGGN, ViViTGGNExact, ViViTGGNMC
from lightning_vivit.errors import OptionError
from lightning_vivit.factors import Factor, contract

Group = dict[str, Any]
_log = logging.getLogger(__name__)


class _Block:
    """What was accumulated for one parameter group during the backward pass."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self.restart()

    def restart(self) -> None:
        """Forget what was accumulated: a new backward pass begins."""
        self.missing = {id(parameter) for parameter in self.group["params"]}
        self.gram: Tensor | None = None  # [N, C, N, C]
        self.cross: Tensor | None = None  # [N, C, N']: V^T g_n
        self.factors: dict[int, Factor] = {}
        self.batch_size = 0

    def square(self) -> tuple[Tensor, float]:
        """The Gram matrix of the GGN as a matrix, columns first, and the scale of V."""
        assert self.gram is not None
        n, c = self.gram.shape[:2]
        correction = (self.batch_size / n) ** 0.5  # BackPACK divides by the whole batch
        flat = self.gram.permute(1, 0, 3, 2).reshape(c * n, c * n) * correction**2
        return flat, correction


class _Computation:
    """What the computations have in common: hooks, groups, options."""

    _needs: tuple[str, ...] = ("params",)
    _keeps_factors = False
    _wants_gradients = False

    def __init__(
        self,
        subsampling: list[int] | None,
        mc_samples: int,
        verbose: bool,
        warn_small_eigvals: float,
        subsampling_grad: list[int] | None = None,
    ) -> None:
        for samples in (subsampling, subsampling_grad):
            if samples is not None and len(set(samples)) != len(samples):
                raise OptionError(f"Subsampling {samples} names a sample twice. Name each once.")
        if mc_samples < 0:
            raise OptionError(f"mc_samples is {mc_samples}. Use 0 (exact) or a positive number.")
        self._subsampling = subsampling
        self._subsampling_grad = subsampling_grad
        self._mc_samples = mc_samples
        self._verbose = verbose
        self._warn_small_eigvals = warn_small_eigvals
        self._results: dict[int, Any] = {}
        self._blocks: dict[int, _Block] = {}

    def _make_extension(self) -> ViViTGGN:
        if self._mc_samples == 0:
            return ViViTGGNExact(subsampling=self._subsampling)
        return ViViTGGNMC(mc_samples=self._mc_samples, subsampling=self._subsampling)

    def get_extension_hook(self, param_groups: Sequence[Group]) -> Callable[[nn.Module], None]:
        """The hook to pass as ``extension_hook`` to ``backpack``.

        Args:
            param_groups: Groups with ``params`` (a block of the GGN) and what the computation
                needs besides (``criterion``, ``damping``).

        Returns:
            The hook.

        Raises:
            OptionError: A key is missing, or a parameter is in two groups.
        """
        _check_groups(param_groups, self._needs)
        made = [_Block(group) for group in param_groups]
        self._blocks.update({id(block.group): block for block in made})
        blocks = {id(p): block for block in made for p in block.group["params"]}
        savefield = self._make_extension().savefield

        def hook(module: nn.Module) -> None:
            self._check_loss(module)
            for parameter in module.parameters(recurse=False):
                quantities = getattr(parameter, savefield, None)
                block = blocks.get(id(parameter))
                if quantities is None or block is None:
                    continue
                delattr(parameter, savefield)
                if id(parameter) not in block.missing:  # seen before: in an earlier backward pass
                    block.restart()
                    self._results.pop(id(block.group), None)
                self._add(block, parameter, quantities, module)
                if not block.missing:
                    self._log("group %s: all parameters seen", id(block.group))
                    self._results[id(block.group)] = self._finish(block)
                    block.factors, block.gram, block.cross = {}, None, None

        return hook

    def get_result(self, group: Group) -> Any:
        """Results of a group after the backward pass.

        Args:
            group: The group as given to `get_extension_hook`, the same object.

        Returns:
            What the computation computes.

        Raises:
            KeyError: The backward pass did not compute this group.
        """
        try:
            return self._results[id(group)]
        except KeyError as error:
            raise KeyError(f"No results available for this group{self._reason(group)}") from error

    def _reason(self, group: Group) -> str:
        if id(group) not in self._blocks:
            return ": it is not one of those given to get_extension_hook."
        missing = self._blocks[id(group)].missing
        shapes = [tuple(p.shape) for p in group["params"] if id(p) in missing]
        return f": backward did not reach its parameters of shape {shapes}. Leave out unused ones."

    def _check_loss(self, module: nn.Module) -> None:
        if not isinstance(module, nn.modules.loss._Loss) or module.reduction == "mean":
            return
        if self._wants_gradients or self._subsampling is not None:
            name = f"{type(module).__name__}(reduction={module.reduction!r})"
            raise OptionError(f"The loss is {name}. Supported here: reduction='mean'.")

    def _finish(self, block: _Block) -> Any:
        raise AssertionError("every computation finishes its blocks")

    def _add(
        self, block: _Block, parameter: nn.Parameter, quantities: dict[str, Any], module: nn.Module
    ) -> None:
        factor: Factor = quantities["factor"]
        block.missing.discard(id(parameter))
        block.batch_size = vars(module)["input0"].shape[0]
        gram = contract(factor, factor)
        block.gram = gram if block.gram is None else block.gram + gram
        if self._wants_gradients:
            gradient = quantities["gradient_factor"](self._subsampling_grad)
            cross = contract(factor, gradient)[..., 0]
            block.cross = cross if block.cross is None else block.cross + cross
        if self._keeps_factors:
            block.factors[id(parameter)] = factor
        self._log("parameter of shape %s: Gram matrix added", tuple(parameter.shape))

    def _eigenpairs(self, block: _Block) -> tuple[Tensor, Tensor, float]:
        """Eigenpairs that the group's criterion keeps, and the scale of V."""
        gram, correction = block.square()
        values, vectors = torch.linalg.eigh(gram)
        keep = block.group["criterion"](values)
        values, vectors = values[keep], vectors[:, keep]
        if bool((values.abs() < self._warn_small_eigvals).any()):
            warnings.warn(
                "Some eigenvalues are small, and what is divided by their square root is "
                "inaccurate. Use a criterion that keeps fewer.",
                stacklevel=2,
            )
        return values, vectors, correction

    def _directions(
        self, block: _Block, values: Tensor, vectors: Tensor, correction: float
    ) -> tuple[Tensor, Tensor]:
        """Gammas [N', K] and lambdas [N, K]."""
        assert block.cross is not None
        assert block.gram is not None
        n, c = block.gram.shape[:2]
        cross = block.cross.permute(1, 0, 2).reshape(c * n, -1) * correction * block.batch_size
        gammas = cross.T @ vectors / values.sqrt()
        lambdas = n * values * vectors.reshape(c, n, -1).square().sum(0)
        return gammas, lambdas

    def _to_parameters(self, block: _Block, weights: Tensor, correction: float) -> list[Tensor]:
        """V times Gram-space vectors [C*N, K], for each parameter [K, *shape]."""
        assert block.gram is not None
        n, c = block.gram.shape[:2]
        coefficients = weights.reshape(c, n, -1).transpose(0, 1) * correction
        factors = [block.factors[id(parameter)] for parameter in block.group["params"]]
        return [factor.weighted_sum(coefficients) for factor in factors]

    def _log(self, text: str, *arguments: Any) -> None:
        if self._verbose:
            _log.info(text, *arguments)


class EigvalshComputation(_Computation):
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

    def _finish(self, block: _Block) -> Tensor:
        """Eigenvalues [C*N], ascending."""
        return torch.linalg.eigvalsh(block.square()[0])


class EighComputation(_Computation):
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

    def _finish(self, block: _Block) -> tuple[Tensor, list[Tensor]]:
        values, vectors, correction = self._eigenpairs(block)
        parts = self._to_parameters(block, vectors, correction)
        norm = (
            torch.stack([part.reshape(len(part), -1).square().sum(1) for part in parts])
            .sum(0)
            .sqrt()
        )
        return values, [part / norm.reshape(-1, *[1] * (part.ndim - 1)) for part in parts]


class DirectionalDerivativesComputation(_Computation):
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

    def _finish(self, block: _Block) -> tuple[Tensor, Tensor]:
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

    def _finish(self, block: _Block) -> Any:
        values, vectors, correction = self._eigenpairs(block)
        gammas, lambdas = self._directions(block, values, vectors, correction)
        damping = block.group["damping"](values, vectors, gammas, lambdas)
        steps = -gammas.mean(0) / (lambdas.mean(0) + damping)
        weights = (vectors @ (steps / values.sqrt())).unsqueeze(1)
        return tuple(part[0] for part in self._to_parameters(block, weights, correction))


def _check_groups(groups: Sequence[Group], needs: Sequence[str]) -> None:
    seen: set[int] = set()
    for group in groups:
        missing = [key for key in needs if key not in group]
        if missing:
            raise OptionError(
                f"A parameter group lacks {', '.join(missing)}. Each group is a dict with "
                f"{', '.join(needs)}."
            )
        for parameter in group["params"]:
            if id(parameter) in seen:
                raise OptionError("A parameter is in two groups. Put each into one.")
            seen.add(id(parameter))
