"""A backend: a way from a recorded forward pass to the factors of its Jacobian."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor

from lightning_vivit.factors import Factor
from lightning_vivit.jacobian.passes import Pass
from lightning_vivit.jacobian.structure import Located
from lightning_vivit.problem.preparation import Preparation
from lightning_vivit.problem.problem import Problem, Recording


class Backend(Preparation, ABC):
    """Prepares a module, locates its samples, and takes factors from it. One for each evaluation.

    Attributes:
        name: What users type.
        has_products: Whether matrix-free products are its own, so that who asks for the backend
            by its name leaves the choice between them and a Gram matrix open.
        has_own_columns: Whether the columns may be others for each sample.
    """

    name: str
    has_products = False
    has_own_columns = False

    def refusal(self, problem: Problem) -> str | None:
        """Why this backend can't be used, and what to do; None if it can, as far as is known.

        Args:
            problem: What is differentiated.
        """
        return None

    @abstractmethod
    def expected_cost(self, problem: Problem) -> float:
        """Expected time of the factors of all columns, with 1 for that of autograd.

        Args:
            problem: What is differentiated.
        """

    @abstractmethod
    def locate(self, recording: Recording) -> Located:
        """Where the samples are in a recorded forward pass.

        Args:
            recording: The forward pass, recorded with this backend as its preparation.

        Raises:
            InteractionError: Samples influence each other.
            ProblemError: The outputs are empty.
        """

    @abstractmethod
    def passes(
        self,
        located: Located,
        names: Sequence[str],
        num_samples: int,
        num_columns: int,
        fixed: int,
        budget: int,
    ) -> list[Pass]:
        """Cut the work into backward sweeps that stay inside a budget.

        Args:
            located: The forward pass.
            names: All parameters that are wanted.
            num_samples: N.
            num_columns: D.
            fixed: Bytes that are needed throughout (the kernels).
            budget: Bytes that may be used over the forward pass.

        Returns:
            The passes; their parameters are disjoint.

        Raises:
            ProblemError: Even one column at a time does not fit; the message says what would.
        """

    @abstractmethod
    def factors(
        self, located: Located, columns: Tensor, names: Sequence[str], gathers: bool = False
    ) -> dict[str, Factor]:
        """Factors of parameters for given columns.

        Args:
            located: The forward pass.
            columns: [D, *outputs shape].
            names: The parameters.
            gathers: Whether there is memory to gather columns, see `Pass`.

        Returns:
            Parameter name -> factor; parameters that do not influence the outputs are left out.

        Raises:
            ProblemError: The backend does not get there.
        """
