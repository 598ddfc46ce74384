"""What is known about a recorded forward pass once it was proved."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lightning_vivit.problem.tape.recorder import Tape
from lightning_vivit.samples.axis import SampleAxis
from lightning_vivit.samples.layout import SampleLayout


@dataclass(frozen=True)
class Structure:
    """Where the samples are inside of a network, and what has to be computed without rules.

    Attributes:
        axes: For each call, the sample axis of each output (None: nothing arrives there).
        usable: For each call, whether its columns have a sample axis.
        dense: Names of the parameters that are computed as rows through the whole graph.
        unused: Names of the parameters that do not influence the outputs.
        astray: Whether an operation's output has room for the samples, but they lie otherwise in
            it: a sign that the outputs' rows belong to other samples than was supposed.
    """

    axes: tuple[tuple[SampleAxis | None, ...], ...] = ()
    usable: tuple[bool, ...] = ()
    dense: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    astray: bool = False


@dataclass(frozen=True)
class Located:
    """A recorded forward pass whose samples are known: what a Jacobian is taken from.

    Attributes:
        tape: The recording.
        outputs: The differentiated outputs, graph attached.
        axis: Where the samples are in the outputs.
        structure: What was proved.
    """

    tape: Tape
    outputs: Tensor
    axis: SampleAxis
    structure: Structure

    @property
    def layout(self) -> SampleLayout:
        """Which rows of the outputs belong to which sample."""
        return SampleLayout(self.axis.num_samples, self.axis.minor)
