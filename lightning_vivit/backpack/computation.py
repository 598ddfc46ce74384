"""What ViViT's computations have in common: hooks, groups, Gram matrices of a backward pass."""

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
_log = logging.getLogger("lightning_vivit.computations")


class GroupBlock:
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


class Computation:
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
        self._blocks: dict[int, GroupBlock] = {}

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
        made = [GroupBlock(group) for group in param_groups]
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

    def _finish(self, block: GroupBlock) -> Any:
        raise AssertionError("every computation finishes its blocks")

    def _add(
        self,
        block: GroupBlock,
        parameter: nn.Parameter,
        quantities: dict[str, Any],
        module: nn.Module,
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

    def _eigenpairs(self, block: GroupBlock) -> tuple[Tensor, Tensor, float]:
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
        self, block: GroupBlock, values: Tensor, vectors: Tensor, correction: float
    ) -> tuple[Tensor, Tensor]:
        """Gammas [N', K] and lambdas [N, K]."""
        assert block.cross is not None
        assert block.gram is not None
        n, c = block.gram.shape[:2]
        cross = block.cross.permute(1, 0, 2).reshape(c * n, -1) * correction * block.batch_size
        gammas = cross.T @ vectors / values.sqrt()
        lambdas = n * values * vectors.reshape(c, n, -1).square().sum(0)
        return gammas, lambdas

    def _to_parameters(self, block: GroupBlock, weights: Tensor, correction: float) -> list[Tensor]:
        """V times Gram-space vectors [C*N, K], for each parameter [K, *shape]."""
        assert block.gram is not None
        n, c = block.gram.shape[:2]
        coefficients = weights.reshape(c, n, -1).transpose(0, 1) * correction
        factors = [block.factors[id(parameter)] for parameter in block.group["params"]]
        return [factor.weighted_sum(coefficients) for factor in factors]

    def _log(self, text: str, *arguments: Any) -> None:
        if self._verbose:
            _log.info(text, *arguments)


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
