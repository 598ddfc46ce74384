"""Monitor of the leading eigenvalues of the generalized Gauss-Newton matrix (GGN) of the loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_vivit.callbacks.base import Monitor
from lightning_vivit.callbacks.learning_rate import learning_rate_and_momentum
from lightning_vivit.errors import require_integer
from lightning_vivit.evaluation.interface import Result
from lightning_vivit.figures import History, draw_layers, draw_spectra
from lightning_vivit.loggers import Chart, Draw, Findings, Panel
from lightning_vivit.matrices import MATRICES, Matrix
from lightning_vivit.metrics.functional import spectrum_statistics, stability_ratio
from lightning_vivit.metrics.functional.spectrum import direction_parts, overlap_of_parts

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def _panels(matrix: Matrix, whole: bool) -> tuple[Panel, ...]:
    """The charts; `whole` says that the whole spectrum may be known."""
    name, mark = matrix.title, matrix.mark
    limit = f"Learning rate x sharpness / limit, stable below 1{mark}"
    overlap = f"Overlap with the previous top subspace{mark}"
    return (
        Panel("Curvature", limit, ("sharpness_lr",)),
        Panel("Curvature", f"Leading eigenvalues of the {name}", ("eigenvalue_i",)),
        Panel("Curvature", f"Trace of the {name}", ("trace", "trace_error")),
        Panel("Curvature", f"Effective rank of the {name}", ("effective_rank",))
        if whole
        else Panel("Cost", f"Matrix-vector products of a search{mark}", ("products",)),
        Panel("Directions", overlap, ("subspace_overlap",)),
    )


class GGNSpectrumMonitor(Monitor):
    """Logs the GGN's leading eigenvalues, and how its top subspace moves.

    Scalars, for the loss as `training_step` reduces it:

    - `ggn/eigenvalue_1` .. `ggn/eigenvalue_k`: the largest eigenvalues, 1 is the largest.
    - `ggn/trace`: sum of all eigenvalues.
    - `ggn/effective_rank`: exponential of the entropy of the normalised eigenvalues.
    - `ggn/sharpness_lr`: the largest eigenvalue times the learning rate, divided by the value at
      which a step on a quadratic diverges (2 for SGD, 2 (1 + momentum) with momentum). Above 1 the
      learning rate is too large for the curvature. Adaptive optimizers rescale the gradient, which
      this number leaves out. Only if the optimizer has a learning rate.
    - `ggn/subspace_overlap`: 1/k ||U^T V||_F^2 of the top subspace with the previous one, from the
      second monitored step on. With data="batch" the two are of different samples.

    Histogram: `ggn/eigenvalues_log10`, of the eigenvalues above rounding. Figures: `ggn/spectrum`,
    eigenvalue against index at up to 32 steps; `ggn/layers`, the largest eigenvalue of each
    parameter group over the steps, if there are several.

    Cost of a monitored step with N samples of C outputs: one forward pass, C backward passes in one
    batch and the contraction to the N C x N C Gram matrix (shared with other monitors of the same
    data and options), its eigenvalues; for the overlap k backward passes and memory for k vectors
    of the size of the parameters. Between monitored steps nothing.

    Without a Gram matrix (method="matrix_free", or where "auto" takes it) only the k leading
    eigenvalues are known: the figures show these, the effective rank and the histogram are left
    out, and there are:

    - `ggn/trace`: an estimate (Hutch++), with its standard error `ggn/trace_error`.
    - `ggn/products`: matrix-vector products that this monitor's search took (0 if another monitor
      has paid for it), each 1 to 1.5 training steps on the same data. From the second
      monitored step on the search starts from the last eigenvectors, which saves up to 60% where
      the steps are close; a resumed run starts it anew. Between monitored steps the k
      eigenvectors stay in memory.

    With matrix="hessian" the same keys are those of the Hessian of the loss, under `hessian/`
    instead of `ggn/`: the k largest eigenvalues, signed; the first one is the sharpness.

    Args:
        k: How many leading eigenvalues to log, and the dimension of the top subspace.
        overlap: Whether to follow the top subspace. Without it no eigenvector is computed.
        mc_samples: 0 uses the exact loss Hessian; a positive number estimates it with so many
            Monte Carlo columns for each sample, which is cheaper for many outputs.
        method: "gram" computes all eigenvalues from the Gram matrix, "mc" the same with Monte
            Carlo columns, "matrix_free" the k leading ones from matrix-vector products. "auto"
            takes the Gram matrix up to 2048 rows (samples times outputs), beyond that what is
            predicted to be faster and fits into memory, and says so once at level INFO.
        matrix: "ggn", or "hessian" for the true Hessian of the loss.
        tol: Relative residual at which a matrix-free eigenpair counts as found; the error of a
            separated eigenvalue is about its square.
        microbatch: Samples in memory at once, matrix-free only; None for as many as fit.
        **options: Those of `Monitor`.
    """

    def __init__(
        self,
        k: int = 10,
        overlap: bool = True,
        mc_samples: int = 0,
        method: Literal["auto", "gram", "mc", "matrix_free"] = "auto",
        matrix: str = "ggn",
        tol: float = 1e-2,
        microbatch: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(k=k, **options)
        self.mc_samples = require_integer("mc_samples", mc_samples, lowest=0)
        self.choose_method(method, matrix, tol, microbatch)
        self.section = matrix
        self._matrix = MATRICES[matrix]
        self._title = f"{self._matrix.title} eigenvalues"
        self.overlap = overlap
        self.parameter_vectors = 2 * k if overlap else 0  # now and at the previous step
        self._subspaces: dict[str, list[Tensor]] = {}  # parts of the previous one
        self._rates: dict[str, tuple[float, float] | None] = {}

    def options(self) -> dict[str, object]:
        """The options that tell this monitor from others of its class."""
        own = {"overlap": self.overlap, "method": self.method, "matrix": self.matrix}
        return {**super().options(), **own, "tol": self.tol, "microbatch": self.microbatch}

    def forget(self) -> None:
        """Forget the previous subspaces, and the steps of the figures."""
        self._subspaces = {}
        self._histories: dict[str, History] = {}
        self._whole: bool | None = None  # whether the whole spectrum is known, once it was seen

    def charts(self) -> list[Chart]:
        """The charts of what is known: the whole spectrum, or its leading part."""
        whole = self._whole
        if whole is None:
            whole = self.method != "matrix_free" and self._matrix.has_rows
        self.panels = _panels(self._matrix, whole)
        return super().charts()

    def prepare(self, trainer: Trainer, module: LightningModule, evaluation: Result) -> None:
        """Note the learning rates."""
        self._rates = {
            group: learning_rate_and_momentum(trainer, module, names)
            for group, names in evaluation.groups.items()
        }

    def measure(self, evaluation: Result, group: str) -> Findings:
        """Spectrum, sharpness and overlap of one group."""
        if not evaluation.whole_spectrum:
            self._whole = False
            return self._measure_leading(evaluation, group)
        self._whole = True
        subspace: dict[str, float | Tensor] = {}
        eigenvalues = evaluation.eigenvalues(group)
        k = self.limit_k(eigenvalues.numel())
        determined = evaluation.rank(group)
        if self.overlap and determined > 0:
            subspace = self._compare(evaluation, group, min(k, determined))
        top = eigenvalues.flip(0)[:k]
        rate = self._rates.get(group)
        learning_rate, momentum = (None, 0.0) if rate is None else rate
        found = spectrum_statistics(eigenvalues, learning_rate, momentum)
        scalars = {f"eigenvalue_{i}": value for i, value in enumerate(top, start=1)}
        scalars |= {"trace": found["trace"], "effective_rank": found["effective_rank"]}
        limits = {}
        if "stability_ratio" in found:
            scalars["sharpness_lr"] = found["stability_ratio"]
            limits["sharpness_lr"] = 1.0
        histograms = {"eigenvalues_log10": eigenvalues[eigenvalues.numel() - determined :].log10()}
        return Findings(
            {**scalars, **subspace},
            histograms,
            figures=self._spectrum(group, eigenvalues),
            arrays={"eigenvalues": eigenvalues},
            limits=limits,
        )

    def _spectrum(self, group: str, eigenvalues: Tensor) -> dict[str, Draw]:
        """The figure of the spectra so far, this step's included."""
        history = self._histories.setdefault(group, History())
        history.add(self._step, eigenvalues)
        return {"spectrum": lambda: draw_spectra(history.entries(), self._title)}

    def overview(self) -> dict[str, Draw]:
        """The largest eigenvalues of several groups over the steps."""
        return {"layers": self._draw_layers} if len(self._histories) > 1 else {}

    def _draw_layers(self) -> Figure:
        entries = {group: dict(history.entries()) for group, history in self._histories.items()}
        steps = sorted({step for found in entries.values() for step in found})
        nothing = torch.tensor([torch.nan])
        values = [[float(e.get(step, nothing).max()) for step in steps] for e in entries.values()]
        return draw_layers(list(entries), steps, np.array(values), f"Largest {self._title}")

    def _measure_leading(self, evaluation: Result, group: str) -> Findings:
        """What the leading eigenpairs tell, where there is no Gram matrix."""
        before = evaluation.products
        eigenvalues = evaluation.eigenvalues(group)
        spent = evaluation.products - before
        k = min(self.k, eigenvalues.numel())
        top = eigenvalues.flip(0)[:k]
        rate = self._rates.get(group)
        scalars: dict[str, float | Tensor] = {
            f"eigenvalue_{i}": value for i, value in enumerate(top, start=1)
        }
        trace = evaluation.trace(group)
        scalars |= {"trace": trace.value, "trace_error": trace.error, "products": float(spent)}
        limits = {}
        if rate is not None:
            scalars["sharpness_lr"] = stability_ratio(top[0], rate[0], rate[1])
            limits["sharpness_lr"] = 1.0
        if self.overlap and (not self._matrix.semidefinite or evaluation.rank(group) >= k):
            scalars |= self._compare(evaluation, group, k)
        return Findings(
            scalars,
            figures=self._spectrum(group, eigenvalues),
            arrays={"eigenvalues": eigenvalues},
            limits=limits,
        )

    def _compare(self, evaluation: Result, group: str, k: int) -> dict[str, float | Tensor]:
        parts = direction_parts(evaluation.eigenvectors(group, k))
        past = self._subspaces.get(group)
        self._subspaces[group] = parts  # nobody writes to eigenvectors, so they are not copied
        if past is None or _widths(past) != _widths(parts):  # parameters were frozen or added
            return {}
        return {"subspace_overlap": overlap_of_parts(parts, past)}

    def references(self) -> dict[str, dict[str, Tensor]]:
        """The previous top subspaces."""
        return {
            group: {f"previous_{i}": part for i, part in enumerate(parts)}
            for group, parts in self._subspaces.items()
        }

    def set_references(self, references: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take the previous top subspaces from a checkpoint."""
        for group, tensors in references.items():
            self._subspaces[group] = list(tensors.values())


def _widths(parts: list[Tensor]) -> list[int]:
    return [part.shape[1] for part in parts]
