"""Writing of monitored values to the loggers of a Trainer."""

from lightning_vivit.loggers.dashboard import Chart, charts
from lightning_vivit.loggers.entry import LogEntry
from lightning_vivit.loggers.publish import (
    lay_out,
    publish,
    set_callback_metrics,
    writer_for,
    x_axis_step,
)
from lightning_vivit.loggers.writer import LogWriter
from lightning_vivit.statistics import Findings

__all__ = [
    "Chart",
    "Findings",
    "LogEntry",
    "LogWriter",
    "charts",
    "lay_out",
    "publish",
    "set_callback_metrics",
    "writer_for",
    "x_axis_step",
]
