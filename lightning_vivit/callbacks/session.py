"""What the monitors of one Trainer share during a fit."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from lightning_vivit.callbacks.failures import cause_of, warn
from lightning_vivit.callbacks.measurement import Measurement
from lightning_vivit.callbacks.options import DTYPES
from lightning_vivit.callbacks.pacing import Pacer
from lightning_vivit.callbacks.probe import BatchSource
from lightning_vivit.eigen.lanczos import search_vectors
from lightning_vivit.eigen.start import Start
from lightning_vivit.evaluation.interface import Result
from lightning_vivit.loggers import LogEntry, lay_out, publish, x_axis_step
from lightning_vivit.parallel import Ranks, Replica, check_room, replica_bytes
from lightning_vivit.statistics import SECTIONS, measure
from lightning_vivit.statistics.cost import Cost


class Session:
    """The state that the monitors of one Trainer share during a fit.

    Args:
        monitors: In the order in which Lightning calls them; the last one ends the step, which
            frees what was shared.
        ranks: The processes of the run.
        replica: Stands in for a module whose parameters are divided among the ranks.

    Attributes:
        pacer: Their time.
        results: Key of monitors -> their evaluation at this step, or why there is none.
        starts: Key of monitors -> what the next search of eigenvectors starts from.
        writers: Key of a value -> the monitor that wrote it at this step.
        reported: The last error of this step that was told.
        laid_out: Whether the dashboards have their charts.
    """

    def __init__(
        self,
        monitors: Sequence[Measurement],
        ranks: Ranks | None = None,
        replica: Replica | None = None,
    ) -> None:
        self.monitors = monitors
        self.last = monitors[-1]
        self.ranks = Ranks() if ranks is None else ranks
        self.replica = replica
        self.pacer = Pacer()
        self.results: dict[Hashable, Result | Exception] = {}
        self.starts: dict[Hashable, dict[str, Start]] = {}
        self.writers: dict[str, Measurement] = {}
        self.reported: Exception | None = None
        self.laid_out = False
        self._probes: dict[tuple[Any, ...], Any] = {}
        self._warned_of_unused = False

    def batch(
        self, source: BatchSource, trainer: Trainer, module: LightningModule, batch: Any
    ) -> Any:
        """The batch of a source; sources with equal keys get one probe. None: not there yet."""
        if source.probe is None and source.key in self._probes:
            source.adopt(self._probes[source.key])
        found = source.fetch(trainer, module, batch)
        if source.probe is not None:
            self._probes[source.key] = source.probe
        return found if all(self.ranks.exchange(found is not None)) else None

    def check_room(self, monitor: Measurement, trainer: Trainer, module: LightningModule) -> None:
        """Refuse a monitor for which a gathered copy of the module would be too large."""
        if self.replica is not None:
            wanted, vectors = monitor.request(), monitor.parameter_vectors
            vectors += search_vectors(wanted.k) if wanted.matrix_free else 0
            replay = DTYPES[monitor.settings.replay_dtype]
            need = replica_bytes(trainer, module, replay, vectors)
            name = type(monitor).__name__
            check_room(name, trainer, self.ranks, wanted.max_memory, need)

    def warn_of_unused(self, evaluation: Result) -> None:
        """Say once which parameters have no influence on the loss."""
        if evaluation.unused and not self._warned_of_unused:
            self._warned_of_unused = True
            names = ", ".join(evaluation.unused[:8]) + (", ..." if evaluation.unused[8:] else "")
            warn(
                f"{len(evaluation.unused)} trainable parameters do not influence the outputs of "
                f"this batch: {names}. Their curvature and kernel are zero. Freeze them with "
                "requires_grad_(False) if they are not meant to be trained.",
                category=UserWarning,
            )

    def publish_cost(self, trainer: Trainer, cost: tuple[float, float]) -> None:
        """Write the seconds of a monitored step and the share of wall-clock so far."""
        table, entry = SECTIONS["cost"], LogEntry(x_axis_step(trainer))
        entry.add(table.name, measure(table.statistics, Cost(*cost)))
        entry.scalars = self.ranks.first(entry.scalars)
        publish(trainer, entry)
        self.ranks.exchange()

    def lay_out_once(self, trainer: Trainer) -> None:
        """Lay out the dashboards after the first monitored step, which tells what is known."""
        if not self.laid_out and any(monitor.run_state.looks for monitor in self.monitors):
            self.laid_out = True
            try:
                charts = [chart for monitor in self.monitors for chart in monitor.charts()]
            except Exception as error:
                warn(f"The dashboards get no charts of the monitors. {cause_of(error)}")
            else:
                lay_out(trainer, charts)

    def end_step(self) -> None:
        """Free what was shared at this step, but for what the next search starts from."""
        for key, found in self.results.items():
            if not isinstance(found, Exception):
                self.starts[key] = found.warm_start()
        self.results.clear()
        self.writers.clear()
        self.reported = None
        if self.replica is not None:
            self.replica.release()
        self.ranks.end_step()
