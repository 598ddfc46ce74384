"""Writing of monitored values to the loggers of a Trainer."""

from lightning_vivit.loggers.dashboard import Chart, Panel
from lightning_vivit.loggers.findings import Draw, Findings, Report
from lightning_vivit.loggers.publish import (
    lay_out,
    publish,
    set_callback_metrics,
    writer_for,
    x_axis_step,
)
from lightning_vivit.loggers.writer import LogWriter

__all__ = [
    "Chart",
    "Draw",
    "Findings",
    "LogWriter",
    "Panel",
    "Report",
    "lay_out",
    "publish",
    "set_callback_metrics",
    "writer_for",
    "x_axis_step",
]
