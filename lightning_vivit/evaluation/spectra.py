"""The spectra of one evaluation: each solved once, several of a group at the same time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Literal, TypeAlias

from torch import Tensor

from lightning_vivit.machine.threads import side_by_side

SpectrumKind: TypeAlias = Literal["ntk", "ggn", "ggn_pairs"]
Solver: TypeAlias = Callable[[], tuple[Tensor, ...]]


class Spectra:
    """Eigenvalues, or eigenvalues and eigenvectors, by group and kind.

    Attributes:
        expected: Kinds that will be asked for of every group.
    """

    def __init__(self) -> None:
        """Start with none."""
        self.expected: frozenset[SpectrumKind] = frozenset()
        self._found: dict[tuple[str, SpectrumKind], Future[tuple[Tensor, ...]]] = {}

    def get(
        self, group: str, kind: SpectrumKind, solvers: Mapping[SpectrumKind, Solver]
    ) -> tuple[Tensor, ...]:
        """What one kind asks for; what else is expected of the group is solved beside it.

        Args:
            group: Parameter group.
            kind: What is wanted now.
            solvers: How to solve each kind for this group, the longest first.

        Returns:
            What the solver returns.

        Raises:
            Exception: What the solver of this kind raised; others raise when they are asked for.
                Who asks again has it solved again: where ranks share a solver, all have to try.
        """
        if (group, kind) not in self._found:
            wanted = [
                each
                for each in solvers
                if each == kind or (each in self.expected and (group, each) not in self._found)
            ]
            solved = side_by_side([solvers[each] for each in wanted])
            self._found.update({(group, each): f for each, f in zip(wanted, solved, strict=True)})
        found = self._found.pop((group, kind))
        result = found.result()
        self._found[group, kind] = found
        return result
