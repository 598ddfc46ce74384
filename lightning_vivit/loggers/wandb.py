"""Weights & Biases: scalars, histograms and figures in one row of the history."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.loggers import WandbLogger

from lightning_vivit.loggers.findings import Report
from lightning_vivit.loggers.pictures import binned, finite, image
from lightning_vivit.loggers.writer import LogWriter

BINS = 64


class WandbWriter(LogWriter):
    """Logs a report as one row at ``trainer/global_step``, the x axis of Lightning's own values.

    The row's internal step is left to the library, which refuses steps that go back: monitors and
    Lightning write the same step at different times.
    """

    logger: WandbLogger
    shows = ("histograms", "figures")

    def write(self, report: Report) -> None:
        """Write everything at once."""
        import wandb

        row: dict[str, Any] = dict(report.scalars)
        for key, samples in report.histograms.items():
            values = finite(samples)
            if values.size:
                counts, edges = binned(values, BINS)
                row[key] = wandb.Histogram(np_histogram=(counts.tolist(), edges.tolist()))
        for key, draw in report.figures.items():
            row[f"{key}_figure" if key in row else key] = wandb.Image(image(draw))
        self.logger.log_metrics(row, step=report.step)
        self.logger.save()
