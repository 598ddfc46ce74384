"""Monitor of the leading eigenvalues of a matrix of curvature, such as the GGN of the loss."""

from __future__ import annotations

from typing import Literal

from lightning.pytorch import LightningModule, Trainer
from typing_extensions import Unpack

from lightning_vivit.callbacks.learning_rate import learning_rate_and_momentum
from lightning_vivit.callbacks.options import Options, lists_options
from lightning_vivit.callbacks.statistics_monitor import StatisticsMonitor
from lightning_vivit.errors import require_integer
from lightning_vivit.evaluation.interface import Result
from lightning_vivit.matrices import MATRICES
from lightning_vivit.statistics import SECTIONS, Memory
from lightning_vivit.statistics.curvature.curvature_look import CurvatureLook


class GGNSpectrumMonitor(StatisticsMonitor):
    """Logs the GGN's leading eigenvalues, and how its top subspace moves.

    For the loss as `training_step` reduces it: the largest eigenvalues, the learning rate against
    the limit that the largest one sets, trace, effective rank and the overlap of the top subspace
    with the previous one, under `ggn/`. docs/keys.md tells of every key: definition, source, how to
    read it, cost; `lightning_vivit.statistics.SECTIONS` is its table.

    Cost of a monitored step with N samples of C outputs: one forward pass, C backward passes in one
    batch and the contraction to the N C x N C Gram matrix (shared with other monitors of the same
    data and options), its eigenvalues; for the overlap k backward passes and memory for k vectors
    of the size of the parameters. Between monitored steps nothing.

    Without a Gram matrix (method="matrix_free", or where "auto" takes it) only the k leading
    eigenvalues are known: the figures show these, the trace is an estimate with a standard error,
    and what needs the whole spectrum is left out. The search takes matrix-vector products, each 1
    to 1.5 training steps on the same data. From the second monitored step on it starts from the
    last eigenvectors, which stay in memory; a resumed run starts it anew.

    With matrix="hessian" the same keys are those of the Hessian of the loss, under `hessian/`
    instead of `ggn/`: the k largest eigenvalues, signed; the first one is the sharpness. With
    matrix="empirical_fisher" they are those of the second moment of the per-sample gradients, under
    `empirical_fisher/`, without the limit of the learning rate, because it is no curvature
    (Kunstner, Balles, Hennig 2019, arXiv:1905.12558): one backward pass, a Gram matrix of N rows.

    Args:
        k: How many leading eigenvalues to log, and the dimension of the top subspace.
        overlap: Whether to follow the top subspace. Without it no eigenvector is computed.
        mc_samples: 0 uses the exact loss Hessian; a positive number estimates it with so many
            Monte Carlo columns for each sample, which is cheaper for many outputs.
        method: "gram" computes all eigenvalues from the Gram matrix, "mc" the same with Monte
            Carlo columns, "matrix_free" the k leading ones from matrix-vector products. "auto"
            takes the Gram matrix up to 2048 rows (samples times outputs), beyond that what is
            predicted to be faster and fits into memory, and says so once at level INFO.
        matrix: "ggn", "hessian" for the true Hessian of the loss, or "empirical_fisher".
        tol: Relative residual at which a matrix-free eigenpair counts as found; the error of a
            separated eigenvalue is about its square.
        microbatch: Samples in memory at once, matrix-free only; None for as many as fit.
        **options: Those of all monitors, see `MonitorOptions`.
    """

    table = SECTIONS["ggn"]
    section = table.name

    @lists_options
    def __init__(
        self,
        k: int = 10,
        overlap: bool = True,
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
        self.table = SECTIONS[matrix]
        self.section = self.table.name
        self.overlap = overlap
        self.parameter_vectors = 2 * k if overlap else 0  # now and at the previous step
        self._rates: dict[str, tuple[float, float] | None] = {}

    def options(self) -> dict[str, object]:
        """The options that tell this monitor from others of its class."""
        own = {"overlap": self.overlap, "method": self.method, "matrix": self.matrix}
        return {**super().options(), **own, "tol": self.tol, "microbatch": self.microbatch}

    def prepare(self, trainer: Trainer, module: LightningModule, evaluation: Result) -> None:
        """Note the learning rates."""
        self._rates = {
            group: learning_rate_and_momentum(trainer, module, names)
            for group, names in evaluation.groups.items()
        }

    def look(self, evaluation: Result, group: str, memory: Memory) -> CurvatureLook:
        """The spectrum of one group."""
        matrix, rate = MATRICES[self.matrix], self._rates.get(group)
        found = CurvatureLook(evaluation, group, self.step, memory, self.k, matrix, rate)
        known = found.eigenvalues.numel()
        found.k = self.limit_k(known) if found.whole else min(self.k, known)
        return found
