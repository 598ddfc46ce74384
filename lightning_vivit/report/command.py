"""The `lightning-vivit report` command."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lightning_vivit.report.page import page
from lightning_vivit.report.runs import ReportError, read_run


def main(args: list[str]) -> int:
    """Write the page.

    Args:
        args: Command line after `lightning-vivit report`.

    Returns:
        The exit code: 0, or 2 if there is nothing to report.
    """
    options = _parser().parse_args(args)
    directories = [options.logdir] + ([options.logdir2] if options.logdir2 else [])
    try:
        content = page([read_run(directory) for directory in directories])
        output = Path(options.output)
        output.write_text(content, encoding="utf-8")
    except (ReportError, OSError) as error:
        print(f"lightning-vivit report: {error}", file=sys.stderr)
        return 2
    print(f"Report: {output.resolve()}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lightning-vivit report",
        description="Write one self-contained HTML page about one run, or two in the same axes: "
        "charts of what the monitors logged, the numbers behind them, the last histograms and "
        "images, and the run's own loss. It reads TensorBoard's event files and CSVLogger's files.",
    )
    parser.add_argument("logdir", metavar="LOGDIR", help="log directory of a run")
    parser.add_argument(
        "logdir2", metavar="LOGDIR2", nargs="?", help="log directory of a run to compare with"
    )
    parser.add_argument(
        "-o", "--output", default="report.html", help="file to write (default: %(default)s)"
    )
    return parser
