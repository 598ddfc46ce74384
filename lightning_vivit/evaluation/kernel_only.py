"""The kernel of a batch in one mode, for those who need nothing else of it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lightning_vivit.errors import OptionError
from lightning_vivit.evaluation.interface import Facts, Question, Result
from lightning_vivit.kernel.modes import KernelEstimate, OutputKernel
from lightning_vivit.kernel.plan import Plan
from lightning_vivit.problem.groups import require_group


class KernelEvaluation(Result):
    """The NTK of one problem in one mode; nothing of the loss but its value and its targets.

    Attributes:
        wanted: Mode and outputs.
    """

    def __init__(
        self,
        facts: Facts,
        wanted: OutputKernel,
        found: Mapping[str, Tensor | KernelEstimate],
        plan: Plan,
    ) -> None:
        """Keep the kernels; use `evaluate_outputs` to make one."""
        super().__init__(facts)
        self.wanted = wanted
        self._found, self._plan = dict(found), plan

    def refusal(self, question: Question) -> str | None:
        """Why a question is not answered, and what to do; None if it is."""
        if question == "ntk":
            return None
        return (
            f"Only the NTK was evaluated, in mode {self.wanted.mode!r}, and no curvature or "
            "gradient of a loss. Evaluate the problem with evaluate(problem)."
        )

    def ntk(self, group: str = "all", mode: str = "full") -> Tensor:
        """The kernel of a group in the layout of its mode; the estimate's mean for ``projected``.

        Raises:
            OptionError: Unknown group, or another mode than that of `wanted`.
        """
        if mode != self.wanted.mode:
            raise OptionError(f"This evaluation has the mode {self.wanted.mode!r}, got {mode!r}.")
        require_group(group, self.groups)
        found = self._found[group]
        return found.kernel if isinstance(found, KernelEstimate) else found

    def ntk_standard_error(self, group: str = "all") -> Tensor | None:
        """Standard error of the kernel's entries, [N, N]; None if they are exact."""
        require_group(group, self.groups)
        found = self._found[group]
        return found.standard_error if isinstance(found, KernelEstimate) else None

    def explain(self) -> str:
        """What each layer cost: a table of order of contraction, time, memory and share."""
        return self._plan.table()
