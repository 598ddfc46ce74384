"""The seam between a recording and what takes Jacobian factors from it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor, nn

from lightning_vivit.factors import Factor
from lightning_vivit.problem.tape.recorder import Tape
from lightning_vivit.samples.axis import SampleAxis


class Backend(Protocol):
    """A way to Jacobian factors that has to see the module before its forward pass."""

    def attach(self, stand_in: nn.Module, original: nn.Module) -> AbstractContextManager[None]:
        """Prepare a stand-in of the user's module for one forward pass.

        Args:
            stand_in: What runs; it shares the parameters.
            original: The user's module.
        """

    def factors(
        self, tape: Tape, outputs: Tensor, axis: SampleAxis, columns: Tensor, names: Sequence[str]
    ) -> dict[str, Factor]:
        """Factors of parameters for given columns.

        Args:
            tape: The recording.
            outputs: The differentiated outputs, graph attached.
            axis: Where the samples are in the outputs.
            columns: [D, *outputs shape].
            names: The parameters.

        Returns:
            Parameter name -> factor.
        """
