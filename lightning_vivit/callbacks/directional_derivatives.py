"""Monitor of every sample's slope and curvature along leading eigenvectors, such as the GGN's."""

from __future__ import annotations

from typing import Literal

from typing_extensions import Unpack

from lightning_vivit.callbacks.options import Options, lists_options
from lightning_vivit.callbacks.statistics_monitor import StatisticsMonitor
from lightning_vivit.errors import OptionError, require_integer
from lightning_vivit.evaluation.interface import Result
from lightning_vivit.matrices import MATRICES
from lightning_vivit.statistics import SECTIONS, Memory
from lightning_vivit.statistics.directions.direction_look import DirectionLook


class DirectionalDerivativesMonitor(StatisticsMonitor):
    """Logs signal and noise of slopes and curvatures along the k leading directions of the GGN.

    gamma is a sample's slope along a direction, lambda its curvature. Directions are taken to point
    uphill; one whose eigenvalue vanishes is not determined by the batch and is left out. Under
    `directions/` there are means and signal-to-noise ratios of both, the share of the gradient that
    lies in the directions and Newton steps; with gradients=True, at the cost of one backward pass,
    also norms, variance and noise scale of the gradients. docs/keys.md tells of every key:
    definition, source, how to read it, cost; `lightning_vivit.statistics.SECTIONS` is its table.

    Cost of a monitored step with N samples of C outputs: one forward pass, C backward passes in one
    batch and the contraction to the N C x N C Gram matrix (shared with other monitors of the same
    data and options), its eigenvectors, no work in parameter space. Between monitored steps
    nothing.

    With matrix="empirical_fisher" the directions are those of the second moment of the per-sample
    gradients, a sample's curvature is its squared slope, and the keys are under
    `empirical_fisher_directions/`; Newton steps are left out, because it is no curvature. It costs
    one backward pass, and its Gram matrix has N rows.

    Args:
        k: How many leading directions to look at.
        damping: Added to the curvature in the Newton step.
        gradients: Whether to log norms, variance and noise scale of the gradients too.
        mc_samples: 0 uses the exact loss Hessian; a positive number estimates it with so many
            Monte Carlo columns for each sample, which is cheaper for many outputs.
        method: "gram", "mc", "matrix_free" or "auto", see `GGNSpectrumMonitor`. Matrix-free
            directions are those of eigenpairs with relative residual `tol`, and slopes and
            curvatures cost one Jacobian-vector product for each; gradients=True then costs one
            backward pass for each sample.
        matrix: "ggn", or "empirical_fisher".
        tol: Relative residual of matrix-free eigenpairs.
        microbatch: Samples in memory at once, matrix-free only; None for as many as fit.
        **options: Those of all monitors, see `MonitorOptions`.
    """

    table = SECTIONS["directions"]
    section = table.name

    @lists_options
    def __init__(
        self,
        k: int = 10,
        damping: float = 0.0,
        gradients: bool = False,
        mc_samples: int = 0,
        method: Literal["auto", "gram", "mc", "matrix_free"] = "auto",
        matrix: str = "ggn",
        tol: float = 1e-2,
        microbatch: int | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(k=k, **options)
        self.mc_samples = require_integer("mc_samples", mc_samples, lowest=0)
        self.choose_method(method, matrix, tol, microbatch)
        if not MATRICES[matrix].has_directions:
            raise OptionError(MATRICES[matrix].no_directions)
        self.table = SECTIONS[MATRICES[matrix].directions]
        self.section = self.table.name
        if isinstance(damping, bool) or not isinstance(damping, (int, float)) or damping < 0:
            raise OptionError(f"damping has to be a number >= 0, got {damping!r}.")
        self.damping = float(damping)
        self.gradients = gradients

    def options(self) -> dict[str, object]:
        """The options that tell this monitor from others of its class."""
        own = {"damping": self.damping, "gradients": self.gradients, "method": self.method}
        own |= {"matrix": self.matrix, "tol": self.tol, "microbatch": self.microbatch}
        return {**super().options(), **own}

    def look(self, evaluation: Result, group: str, memory: Memory) -> DirectionLook:
        """Slopes and curvatures of one group."""
        k = self.limit_k(evaluation.num_directions)
        matrix = MATRICES[self.matrix]
        return DirectionLook(evaluation, group, self.step, memory, k, self.damping, matrix)
