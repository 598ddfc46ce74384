"""The autograd backend: factors for any architecture, proved before they are used."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lightning_vivit.factors import Factor
from lightning_vivit.jacobian.backend import Backend
from lightning_vivit.jacobian.passes import Pass, plan_passes
from lightning_vivit.jacobian.proof import locate_samples
from lightning_vivit.jacobian.structure import Located
from lightning_vivit.jacobian.structured import jacobian_factors
from lightning_vivit.problem.problem import Problem, Recording


class AutogradBackend(Backend):
    """Rules turn the columns at every recorded operation into factors; see `Backend`."""

    name = "autograd"
    has_products = True
    has_own_columns = True
    takes_forms = True

    def expected_cost(self, problem: Problem) -> float:
        """1: the unit."""
        return 1.0

    def locate(self, recording: Recording) -> Located:
        """Sample axis and structure, proved by probing."""
        tape, outputs = recording.tape, recording.outputs
        axis, structure = locate_samples(tape, outputs, recording.sizes, recording.model)
        return Located(tape, outputs, axis, structure)

    def passes(
        self,
        located: Located,
        names: Sequence[str],
        num_samples: int,
        num_columns: int,
        fixed: int,
        budget: int,
    ) -> list[Pass]:
        """Backward sweeps over bundles of parameters, or over blocks of columns."""
        return plan_passes(located, names, num_samples, num_columns, fixed, budget)

    def factors(
        self, located: Located, columns: Tensor, names: Sequence[str], gathers: bool = False
    ) -> dict[str, Factor]:
        """Factors from one batched backward pass."""
        return jacobian_factors(located, columns, names, gathers)
