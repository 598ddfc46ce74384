"""TensorBoard: scalars and histograms."""

from __future__ import annotations

import torch
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_vivit.loggers.report import Report
from lightning_vivit.loggers.writer import LogWriter

BINS = 50


class TensorBoardWriter(LogWriter):
    """Adds a report's histograms to the scalars."""

    logger: TensorBoardLogger
    shows = ("histograms", "figures")

    def write(self, report: Report) -> None:
        """Write scalars, and the histograms that have finite values."""
        for name, values in report.histograms.items():
            flat = values.detach().flatten().to("cpu", torch.float64)
            flat = flat[flat.isfinite()]
            if flat.numel() > 0:  # add_histogram raises on empty input and on NaN
                self.logger.experiment.add_histogram(
                    self._with_prefix(name), flat.numpy(), global_step=report.step, bins=BINS
                )
        super().write(report)
