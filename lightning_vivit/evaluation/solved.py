"""The Gram matrices of the parameter groups: their spectra and eigenpairs, each solved once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from lightning_vivit.eigen.symmetric import gram_eigenpairs, gram_eigenvalues
from lightning_vivit.errors import OptionError
from lightning_vivit.parallel import Whole
from lightning_vivit.problem.groups import require_group

_T = TypeVar("_T")


@dataclass(frozen=True)
class Block:
    """What one parameter group contributes."""

    names: list[str]
    kernel: Tensor | None  # [N, D, N, D], exact columns only
    weighted: Tensor | None  # [N, M+1, N, M+1], the gradient last; None without a loss


class Grams:
    """Gram matrices V^T V of all samples or of some, and the NTKs."""

    def __init__(
        self,
        blocks: Mapping[str, Block],
        num_samples: int,
        scale: float | None,
        dtype: torch.dtype,
        whole: Whole | None,
    ) -> None:
        """Keep the kernels.

        Args:
            blocks: Group -> its kernels.
            num_samples: N.
            scale: The loss is ``scale * sum_n l_n``; None without a loss.
            dtype: In which the kernels were computed.
            whole: All ranks' samples: one of them solves, and all get the result.
        """
        self.num_samples = num_samples
        self.scale = scale
        self._blocks = blocks
        self._dtype = dtype
        self._whole = whole
        self._pairs: dict[tuple[str, tuple[int, ...] | None], tuple[Tensor, Tensor]] = {}
        self._values: dict[tuple[str, tuple[int, ...] | None], Tensor] = {}

    @property
    def have_kernels(self) -> bool:
        """Whether the NTKs are known."""
        return all(block.kernel is not None for block in self._blocks.values())

    def block(self, group: str) -> Block:
        """The kernels of a group; raises `OptionError` where there is no such group."""
        require_group(group, self._blocks)
        return self._blocks[group]

    def weighted(self, group: str) -> Tensor:
        """Inner products of the columns of V and, last, of the gradients, [N, M+1, N, M+1]."""
        weighted = self.block(group).weighted
        assert weighted is not None  # there is a loss
        return weighted

    def columns(self, group: str) -> int:
        """Columns of V for each sample, M."""
        return self.weighted(group).shape[1] - 1

    def indices(self, samples: Sequence[int] | None) -> list[int]:
        """The samples that are meant; raises `OptionError` where there is no such sample."""
        if samples is None:
            return list(range(self.num_samples))
        found = [int(sample) for sample in samples]
        if not found or any(not 0 <= sample < self.num_samples for sample in found):
            raise OptionError(
                f"Got the sample subset {found}. Supported: at least one index from 0 to "
                f"{self.num_samples - 1}."
            )
        return found

    def subset_scale(self, count: int) -> float:
        """Scale of a loss over a subset: a mean stays a mean, a sum stays an estimate of it."""
        assert self.scale is not None
        return self.scale * self.num_samples / count

    def trace(self, group: str) -> float:
        """Sum of all eigenvalues."""
        gram, scale = self._gram(group, None)
        return scale * float(torch.einsum("ncnc->nc", gram).sum(dtype=torch.float64))

    def eigenvalues(self, group: str, samples: Sequence[int] | None = None) -> Tensor:
        """All eigenvalues of a group's Gram matrix, ascending."""
        key = (group, _key(samples))
        if key not in self._values:
            kept = self._pairs.get(key)
            if kept is not None and kept[0].numel() == kept[1].shape[0]:
                self._values[key] = kept[0]
            else:
                self._values[key] = self._solve_values(group, samples)
        return self._values[key]

    def eigenpairs(
        self, group: str, k: int | None, samples: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """The k largest eigenvalues, ascending, with eigenvectors as columns; None for all."""
        key = (group, _key(samples))
        kept = self._pairs.get(key)
        if kept is None or k is None or not 1 <= k <= kept[0].numel():
            kept = self._pairs[key] = self._solve_pairs(group, k, samples)
        values, vectors = kept
        return (values, vectors) if k is None else (values[-k:], vectors[:, -k:])

    def _gram(self, group: str, samples: Sequence[int] | None) -> tuple[Tensor, float]:
        """V^T V over the scale, [N, M, N, M], and the scale."""
        weighted = self.weighted(group)
        kept = self.indices(samples)
        if samples is not None:
            weighted = weighted[kept][:, :, kept]
        return weighted[:, :-1, :, :-1], self.subset_scale(len(kept))

    def _solve_values(self, group: str, samples: Sequence[int] | None) -> Tensor:
        def solve() -> Tensor:
            gram, scale = self._gram(group, samples)
            return gram_eigenvalues(gram, self._dtype) * scale

        return self._solved(solve)

    def _solve_pairs(
        self, group: str, k: int | None, samples: Sequence[int] | None
    ) -> tuple[Tensor, Tensor]:
        def solve() -> tuple[Tensor, Tensor]:
            gram, scale = self._gram(group, samples)
            size = gram.shape[0] * gram.shape[1]
            return gram_eigenpairs((gram * scale).reshape(size, size), k, self._dtype)

        return self._solved(solve)

    def _solved(self, solve: Callable[[], _T]) -> _T:
        """The result of an eigensolver, the same one on all ranks."""
        return solve() if self._whole is None else self._whole.on_first(solve)


def _key(samples: Sequence[int] | None) -> tuple[int, ...] | None:
    return None if samples is None else tuple(samples)
