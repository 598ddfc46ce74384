"""One self-contained HTML page about one or two runs, made from their logs."""

from lightning_vivit.report.command import main
from lightning_vivit.report.page import page
from lightning_vivit.report.runs import ReportError, Run, read_run

__all__ = ["ReportError", "Run", "main", "page", "read_run"]
