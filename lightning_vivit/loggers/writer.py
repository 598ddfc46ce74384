"""The interface to one logger. A logger without pictures gets the scalars."""

from __future__ import annotations

from collections.abc import Sequence

from lightning.pytorch.loggers import Logger

from lightning_vivit.loggers.dashboard import Chart
from lightning_vivit.loggers.report import Report


class LogWriter:
    """Writes a report's scalars to any logger of Lightning.

    Args:
        logger: A logger of the Trainer.
    """

    def __init__(self, logger: Logger) -> None:
        self.logger = logger

    def lay_out(self, charts: Sequence[Chart]) -> None:
        """Take the charts that show the monitors' keys; for loggers that have such a page."""

    def write(self, report: Report) -> None:
        """Write a report now: monitored steps are rare, and people watch the run."""
        self.logger.log_metrics(report.scalars, step=report.step)
        self.logger.save()
