"""Comet: scalars, histograms and figures."""

from __future__ import annotations

from lightning.pytorch.loggers import CometLogger

from lightning_vivit.loggers.entry import LogEntry
from lightning_vivit.loggers.pictures import finite, image
from lightning_vivit.loggers.writer import LogWriter


class CometWriter(LogWriter):
    """Logs histograms as 3D histograms over the steps, and figures as images."""

    kind = "CometLogger"
    logger: CometLogger
    shows = ("histograms", "figures")

    def write(self, entry: LogEntry) -> None:
        """Write scalars, the histograms that have finite values, and figures."""
        experiment = self.logger.experiment
        for key, samples in entry.histograms.items():
            values = finite(samples)
            if values.size:
                name = self._with_prefix(key)
                experiment.log_histogram_3d(values, name=name, step=entry.step)
        for key, draw in entry.figures.items():
            experiment.log_image(image(draw), name=self._with_prefix(key), step=entry.step)
        super().write(entry)

    def _with_prefix(self, name: str) -> str:
        prefix = self.logger._prefix
        return f"{prefix}_{name}" if prefix else name  # the library joins its metrics like this
