"""Writing of monitored values to the loggers of a Trainer."""

from lightning_vivit.loggers.publish import publish, set_callback_metrics, writer_for, x_axis_step
from lightning_vivit.loggers.report import Draw, Findings, Report
from lightning_vivit.loggers.writer import LogWriter

__all__ = [
    "Draw",
    "Findings",
    "LogWriter",
    "Report",
    "publish",
    "set_callback_metrics",
    "writer_for",
    "x_axis_step",
]
