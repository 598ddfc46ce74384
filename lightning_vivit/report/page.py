"""The HTML page: sections of charts, the numbers behind them, histograms and images."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from lightning_vivit.report import drawing
from lightning_vivit.report.drawing import Drawing, Line, histogram_chart, line_chart
from lightning_vivit.report.plots import ORDER, Plot, glance, natural, plots
from lightning_vivit.report.runs import ReportError, Run
from lightning_vivit.report.scale import label
from lightning_vivit.statistics import find_key
from lightning_vivit.statistics.key import Kind
from lightning_vivit.version import __version__

MAX_ROWS = 2000  # of one table
MAX_LEGEND = 16
KINDS: dict[str, tuple[Kind, ...]] = {
    "scalars": ("scalar",),
    "histograms": ("histogram",),
    "images": ("figure", "overview"),
}


class Table(NamedTuple):
    """The numbers behind a chart: one in `every` of so many `steps`."""

    heads: list[str]
    rows: list[tuple[int, list[str]]]
    steps: int
    every: int


class Panel(NamedTuple):
    """A chart with all that stands around it; the legend is of labels and classes."""

    plot: Plot
    chart: Drawing
    legend: list[tuple[str, str]]
    table: Table


class Ends(NamedTuple):
    """First and last value of a key, and what is wrong with the last one."""

    first: float
    last: float
    wrong: str


class Glance(NamedTuple):
    """What a key to look at first says of each run."""

    key: str
    title: str
    reading: str
    ends: list[Ends | None]


@dataclass(frozen=True)
class PageSection:
    """A section of the page: charts over all parameters and by group, histograms and images."""

    title: str
    whole: list[Panel]
    grouped: list[Panel]
    histograms: list[tuple[str, str, Drawing]]
    images: list[tuple[str, str, str]]


def page(runs: Sequence[Run]) -> str:
    """The page of one run, or of two in the same axes.

    Args:
        runs: One or two.

    Raises:
        ReportError: If a run has no key of a monitor.
    """
    for run in runs:
        if not any(_keys([run], content) for content in KINDS):
            raise ReportError(
                f"{run.path} has no value of a monitor among its {len(run.scalars)} scalars. Add "
                "GGNSpectrumMonitor, DirectionalDerivativesMonitor or NTKMonitor to the Trainer's "
                "callbacks."
            )
    names = run_names(runs)
    found = plots(key for run in runs for key in run.scalars)
    sections = [_section(title, found, runs, names) for title in ORDER]
    template = environment().get_template("page.html")
    return template.render(
        names=names,
        about=[_about(run, names[at], at) for at, run in enumerate(runs)],
        glance=_glance(runs),
        sections=[each for each in sections if any(list(vars(each).values())[1:])],
        version=__version__,
        MAX_LEGEND=MAX_LEGEND,
    )


def environment() -> Environment:
    """The templates, which escape everything."""
    found = Environment(
        loader=PackageLoader("lightning_vivit.report"), autoescape=True, undefined=StrictUndefined
    )
    found.globals |= {name: vars(drawing)[name] for name in drawing.CANVAS}
    found.filters |= {"px": "{:.1f}".format, "label": label, "prose": _prose}
    return found


def run_names(runs: Sequence[Run]) -> list[str]:
    """Names that tell the runs apart: the ends of their paths."""
    for parts in range(2, max(len(run.path.parts) for run in runs) + 1):
        names = ["/".join(run.path.parts[-parts:]) for run in runs]
        if len(set(names)) == len(names):
            return names
    return [f"{Path(run.path).name} ({number})" for number, run in enumerate(runs, start=1)]


def number(value: float) -> str:
    """The shortest text that gives the same number, in float32 where the value is one."""
    single = np.float32(value) if abs(value) < 3e38 else None
    exact = single is not None and float(single) == value
    return str(single) if exact else repr(float(value))


def _prose(text: str) -> Markup:
    """Text of the table of statistics, whose backticks mean code."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _keys(runs: Sequence[Run], content: str, category: str | None = None) -> list[str]:
    """Our keys among the scalars, histograms or images of some runs, in their natural order."""
    keys = {key for run in runs for key in getattr(run, content)}
    logged = {key: find_key(key, *KINDS[content]) for key in keys}
    ours = (k for k, each in logged.items() if each and category in (None, each.statistic.category))
    return sorted(ours, key=natural)


def _about(run: Run, name: str, at: int) -> dict[str, str]:
    steps = {step for key in _keys([run], "scalars") for step in run.scalars[key]}
    says = f"{len(steps)} monitored steps, {min(steps)} to {max(steps)}" if steps else "no step"
    style = f"c{at}" + " second" * bool(at)
    return {"name": name, "path": str(run.path), "says": says, "style": style}


def _glance(runs: Sequence[Run]) -> list[Glance]:
    rows = []
    for key, logged in glance(key for run in runs for key in run.scalars).items():
        statistic, words = logged.statistic, logged.section.words
        ends = []
        for run in runs:
            values = list(run.scalars.get(key, {}).values())
            wrong = statistic.verdict.of(values[-1]) if values and statistic.verdict else ""
            ends.append(Ends(values[0], values[-1], wrong) if values else None)
        reading = statistic.reading.format_map(words)
        rows.append(Glance(key, statistic.title(words), reading, ends))
    return rows


def _section(
    title: str, found: Sequence[Plot], runs: Sequence[Run], names: Sequence[str]
) -> PageSection:
    mine = [plot for plot in found if plot.category == title]
    return PageSection(
        title,
        [_panel(plot, runs, names) for plot in mine if not plot.grouped],
        [_panel(plot, runs, names) for plot in mine if plot.grouped],
        [_histogram(key, runs) for key in _keys(runs, "histograms", title)],
        [each for key in _keys(runs, "images", title) for each in _images(key, runs, names)],
    )


def _panel(plot: Plot, runs: Sequence[Run], names: Sequence[str]) -> Panel:
    lines: list[Line] = []
    legend: dict[str, str] = {}
    for at, (key, said) in enumerate(plot.lines.items()):
        for second, run in enumerate(runs):
            if key in run.scalars:
                colour = second if len(plot.lines) == 1 else at
                named = " ".join(part for part in (said, names[second] * (len(runs) > 1)) if part)
                lines.append(Line(named, colour, bool(second), list(run.scalars[key].items())))
                if said:
                    legend.setdefault(said, f"c{colour % drawing.COLOURS}")
    chart = line_chart(lines, f"{plot.title} {plot.path}".strip(), plot.limit)
    return Panel(plot, chart, list(legend.items()), _table(plot, runs, names))


def _table(plot: Plot, runs: Sequence[Run], names: Sequence[str]) -> Table:
    columns = {
        f"{key} ({name})" if len(runs) > 1 else key: run.scalars[key]
        for key in plot.lines
        for run, name in zip(runs, names, strict=True)
        if key in run.scalars
    }
    steps = sorted({step for points in columns.values() for step in points})
    every = -(-len(steps) // MAX_ROWS)
    rows = [
        (step, [number(each[step]) if step in each else "" for each in columns.values()])
        for step in steps[::every]
    ]
    return Table(list(columns), rows, len(steps), every)


def _histogram(key: str, runs: Sequence[Run]) -> tuple[str, str, Drawing]:
    drawn = [(at, run.histograms[key]) for at, run in enumerate(runs) if key in run.histograms]
    steps = " and ".join(str(step) for step in sorted({each.step for _, each in drawn}))
    return key, steps, histogram_chart(drawn, key)


def _images(key: str, runs: Sequence[Run], names: Sequence[str]) -> list[tuple[str, str, str]]:
    shown = []
    for run, name in zip(runs, names, strict=True):
        if key in run.images:
            says = f"at step {run.images[key].step}" + (f" of {name}" if len(runs) > 1 else "")
            shown.append((key, says, base64.b64encode(run.images[key].content).decode()))
    return shown
