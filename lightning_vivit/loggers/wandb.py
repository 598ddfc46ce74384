"""Weights & Biases: scalars, histograms and figures in one row of the history."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.loggers import WandbLogger

from lightning_vivit.loggers.entry import LogEntry
from lightning_vivit.loggers.pictures import binned, finite, image
from lightning_vivit.loggers.writer import LogWriter

BINS = 64


class WandbWriter(LogWriter):
    """Logs an entry as one row at ``trainer/global_step``, the x axis of Lightning's own values.

    The row's internal step is left to the library, which refuses steps that go back: monitors and
    Lightning write the same step at different times.
    """

    kind = "WandbLogger"
    logger: WandbLogger
    shows = ("histograms", "figures")

    def write(self, entry: LogEntry) -> None:
        """Write everything at once."""
        import wandb

        row: dict[str, Any] = dict(entry.scalars)
        for key, samples in entry.histograms.items():
            values = finite(samples)
            if values.size:
                counts, edges = binned(values, BINS)
                row[key] = wandb.Histogram(np_histogram=(counts.tolist(), edges.tolist()))
        for key, draw in entry.figures.items():
            row[f"{key}_figure" if key in row else key] = wandb.Image(image(draw))
        self.logger.log_metrics(row, step=entry.step)
        self.logger.save()
