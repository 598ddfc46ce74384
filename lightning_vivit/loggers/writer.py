"""The interface to one logger. A logger without pictures gets the scalars."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from lightning.pytorch.loggers import Logger

from lightning_vivit.loggers.dashboard import Chart
from lightning_vivit.loggers.entry import LogEntry

PICTURES = ("histograms", "figures")  # what an entry has for loggers beside the scalars


class LogWriter:
    """Writes an entry's scalars to any logger of Lightning.

    Args:
        logger: A logger of the Trainer.

    Attributes:
        kind: Name of the loggers' class, whichever package it comes from; subclasses count.
        shows: Which of `PICTURES` a logger of this kind takes.
    """

    kind: ClassVar[str] = "Logger"
    shows: ClassVar[tuple[str, ...]] = ()

    def __init__(self, logger: Logger) -> None:
        self.logger = logger

    def lay_out(self, charts: Sequence[Chart]) -> None:
        """Take the charts that show the monitors' keys; for loggers that have such a page."""

    def write(self, entry: LogEntry) -> None:
        """Write an entry now: monitored steps are rare, and people watch the run."""
        self.logger.log_metrics(entry.scalars, step=entry.step)
        self.logger.save()

    def missing(self, entry: LogEntry) -> tuple[str, ...]:
        """What this logger does not show, if the entry has something of it; else empty."""
        missing = tuple(kind for kind in PICTURES if kind not in self.shows)
        return missing if any(getattr(entry, kind) for kind in missing) else ()

    def _with_prefix(self, name: str) -> str:
        prefix = getattr(self.logger, "_prefix", "")  # the logger's own option, for its scalars
        joined = getattr(self.logger, "LOGGER_JOIN_CHAR", "-")
        return f"{prefix}{joined}{name}" if prefix else name
