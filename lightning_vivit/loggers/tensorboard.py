"""TensorBoard: scalars, histograms, figures and the charts of the custom scalars page.

A run has one layout of its custom scalars page, and a second one replaces it. So that the user's
own stays, ours lies in the sub-run `limits`, whose layout TensorBoard merges with the run's. The
same sub-run draws the limits that scalars are read against as lines into their charts.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch.utils.tensorboard import SummaryWriter

from lightning_vivit.figures.canvas import draw_pixels
from lightning_vivit.loggers.dashboard import Chart, layout
from lightning_vivit.loggers.entry import LogEntry
from lightning_vivit.loggers.writer import LogWriter

BINS = 50
SUB_RUN = "limits"

_SUB_RUNS: WeakKeyDictionary[TensorBoardLogger, SummaryWriter] = WeakKeyDictionary()


class TensorBoardWriter(LogWriter):
    """Adds an entry's histograms, figures and limits to the scalars."""

    kind = "TensorBoardLogger"
    logger: TensorBoardLogger
    shows = ("histograms", "figures")

    @rank_zero_only
    def lay_out(self, charts: Sequence[Chart]) -> None:
        """Write the charts of the custom scalars page."""
        sub_run = self._sub_run()
        sub_run.add_custom_scalars(layout(charts, self._with_prefix("")))
        sub_run.flush()

    def write(self, entry: LogEntry) -> None:
        """Write scalars, histograms of finite values, limits and figures."""
        self._write_histograms(entry)
        self._write_limits(entry)
        super().write(entry)
        if entry.figures:
            self._write_figures(entry)
            self.logger.save()

    @rank_zero_only
    def _write_figures(self, entry: LogEntry) -> None:
        for name, draw in entry.figures.items():
            self.logger.experiment.add_image(
                self._with_prefix(name),
                draw_pixels(draw),
                global_step=entry.step,
                dataformats="HWC",
            )

    @rank_zero_only
    def _write_histograms(self, entry: LogEntry) -> None:
        for name, values in entry.histograms.items():
            flat = values.detach().flatten().to("cpu", torch.float64)
            flat = flat[flat.isfinite()]
            if flat.numel() > 0:  # add_histogram raises on empty input and on NaN
                self.logger.experiment.add_histogram(
                    self._with_prefix(name), flat.numpy(), global_step=entry.step, bins=BINS
                )

    @rank_zero_only
    def _write_limits(self, entry: LogEntry) -> None:
        if entry.limits:
            sub_run = self._sub_run()
            for name, value in entry.limits.items():
                sub_run.add_scalar(self._with_prefix(name), value, entry.step)
            sub_run.flush()

    def _sub_run(self) -> SummaryWriter:
        known = _SUB_RUNS.get(self.logger)
        if known is None:
            folder = os.path.join(self.logger.experiment.log_dir, SUB_RUN)
            known = _SUB_RUNS[self.logger] = SummaryWriter(folder)
        return known
