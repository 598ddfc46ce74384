"""The HTML page: sections of charts, the numbers behind them, histograms and images."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np

from lightning_vivit.report.charts import (
    GLANCE,
    ORDER,
    TRAINING,
    Chart,
    charts,
    is_ours,
    natural,
    place,
    plain,
)
from lightning_vivit.report.runs import ReportError, Run
from lightning_vivit.report.style import STYLE
from lightning_vivit.report.svg import Line, histogram_chart, line_chart
from lightning_vivit.version import __version__

MAX_ROWS = 2000  # of one table
MAX_LEGEND = 16
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # nothing is fetched


def page(runs: Sequence[Run]) -> str:
    """The page of one run, or of two in the same axes.

    Args:
        runs: One or two.

    Raises:
        ReportError: If a run has no key of a monitor.
    """
    for run in runs:
        if not any(map(is_ours, [*run.scalars, *run.histograms, *run.images])):
            raise ReportError(
                f"{run.path} has no value of a monitor among its {len(run.scalars)} scalars. Add "
                "GGNSpectrumMonitor, DirectionalDerivativesMonitor or NTKMonitor to the Trainer's "
                "callbacks."
            )
    names = run_names(runs)
    found = charts(key for run in runs for key in run.scalars)
    sections = []
    for title in ORDER:
        body = _section(title, [chart for chart in found if chart.section == title], runs, names)
        if body:
            sections.append((title, body))
    links = "".join(f'<a href="#{title.lower()}">{title}</a>' for title, _ in sections)
    parts = [
        f'<section id="{title.lower()}"><h2>{title}</h2>{body}</section>'
        for title, body in sections
    ]
    heading = " and ".join(names)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{escape(heading)}: lightning_vivit</title>'
        f"<style>{STYLE}</style></head><body><header><h1>{escape(heading)}</h1>"
        f"{_about(runs, names)}<nav>{links}</nav></header><main>"
        f"{_glance(runs, names)}{''.join(parts)}</main>"
        f"<footer>lightning_vivit {escape(__version__)}</footer></body></html>\n"
    )


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


def _about(runs: Sequence[Run], names: Sequence[str]) -> str:
    items = []
    for at, (run, name) in enumerate(zip(runs, names, strict=True)):
        steps = {step for key, points in run.scalars.items() if is_ours(key) for step in points}
        said = f"{len(steps)} monitored steps, {min(steps)} to {max(steps)}" if steps else "no step"
        items.append(
            f"<li>{_swatch(at, bool(at))} <b>{escape(name)}</b> "
            f"<code>{escape(str(run.path))}</code> {said}</li>"
        )
    return f"<ul>{''.join(items)}</ul>"


def _glance(runs: Sequence[Run], names: Sequence[str]) -> str:
    rows = []
    keys = sorted({key for run in runs for key in run.scalars})
    for name, meaning in GLANCE.items():
        for key in (key for key in keys if plain(key) == name):
            cells = "".join(_first_and_last(run.scalars.get(key, {})) for run in runs)
            rows.append(
                f"<tr><th><code>{escape(key)}</code></th>{cells}<td>{escape(meaning)}</td></tr>"
            )
    if not rows:
        return ""
    heads = "".join(f"<th>{escape(name)}</th>" for name in names)
    return (
        '<section><h2>At a glance</h2><div class="scroll"><table class="glance">'
        f"<thead><tr><th>key</th>{heads}<th>what it says</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div></section>"
    )


def _first_and_last(points: dict[int, float]) -> str:
    values = list(points.values())
    text = f"{values[0]:.4g} &rarr; <b>{values[-1]:.4g}</b>" if values else "&ndash;"
    return f"<td>{text}</td>"


def _section(title: str, found: list[Chart], runs: Sequence[Run], names: Sequence[str]) -> str:
    whole = "".join(_chart(chart, runs, names) for chart in found if not chart.grouped)
    grouped = "".join(_chart(chart, runs, names) for chart in found if chart.grouped)
    drawn = "" if title == TRAINING else _histograms(title, runs) + _images(title, runs, names)
    parts = [f'<div class="charts">{whole}</div>'] if whole else []
    if grouped:
        inside = f'<div class="charts">{grouped}</div>'
        parts.append(
            f'<details class="groups" open><summary>By parameter group</summary>{inside}</details>'
        )
    if drawn:
        parts.append(f'<div class="charts">{drawn}</div>')
    return "".join(parts)


def _chart(chart: Chart, runs: Sequence[Run], names: Sequence[str]) -> str:
    lines: list[Line] = []
    legend: list[tuple[str, int]] = []
    for at, (key, label) in enumerate(chart.lines.items()):
        for second, run in enumerate(runs):
            if key in run.scalars:
                colour = second if len(chart.lines) == 1 else at
                named = " ".join(part for part in (label, names[second] * (len(runs) > 1)) if part)
                points = list(run.scalars[key].items())
                lines.append(Line(named, colour, bool(second), points))
                if label and not any(label == known for known, _ in legend):
                    legend.append((label, colour))
    shown = "".join(
        f"<li>{_swatch(colour)} {escape(label)}</li>" for label, colour in legend[:MAX_LEGEND]
    )
    more = len(legend) - MAX_LEGEND
    shown += f"<li>and {more} more in the table</li>" if more > 0 else ""
    limit = "" if chart.limit is None else f" <small>dashed line: {chart.limit:g}</small>"
    return (
        f"<figure><figcaption><code>{escape(chart.title)}</code>{limit}</figcaption>"
        f"{line_chart(lines, chart.title, chart.limit)}"
        f"{f'<ul class=legend>{shown}</ul>' if shown else ''}{_table(chart, runs, names)}</figure>"
    )


def _table(chart: Chart, runs: Sequence[Run], names: Sequence[str]) -> str:
    columns = [
        (key, f"{key} ({names[at]})" if len(runs) > 1 else key, run.scalars[key])
        for key in chart.lines
        for at, run in enumerate(runs)
        if key in run.scalars
    ]
    steps = sorted({step for _, _, points in columns for step in points})
    every = -(-len(steps) // MAX_ROWS)
    thin = f", one in {every} of {len(steps)} steps" if every > 1 else ""
    heads = "".join(f"<th>{escape(head)}</th>" for _, head, _ in columns)
    rows = []
    for step in steps[::every]:
        cells = "".join(
            f"<td>{number(points[step]) if step in points else ''}</td>" for _, _, points in columns
        )
        rows.append(f"<tr><td>{step}</td>{cells}</tr>")
    return (
        f'<details><summary>Numbers{thin}</summary><div class="scroll"><table>'
        f"<thead><tr><th>step</th>{heads}</tr></thead><tbody>{''.join(rows)}</tbody>"
        "</table></div></details>"
    )


def _histograms(title: str, runs: Sequence[Run]) -> str:
    parts = []
    for key in _keys_of(title, [run.histograms for run in runs]):
        drawn = [(at, run.histograms[key]) for at, run in enumerate(runs) if key in run.histograms]
        steps = " and ".join(str(step) for step in sorted({each.step for _, each in drawn}))
        parts.append(
            f"<figure><figcaption><code>{escape(key)}</code> <small>at step {steps}, "
            f"density</small></figcaption>{histogram_chart(drawn, key)}</figure>"
        )
    return "".join(parts)


def _images(title: str, runs: Sequence[Run], names: Sequence[str]) -> str:
    parts = []
    for key in _keys_of(title, [run.images for run in runs]):
        for at, run in enumerate(runs):
            if key in run.images:
                image = run.images[key]
                source = base64.b64encode(image.content).decode()
                whose = f" of {escape(names[at])}" if len(runs) > 1 else ""
                parts.append(
                    f"<figure><figcaption><code>{escape(key)}</code> <small>at step {image.step}"
                    f'{whose}</small></figcaption><img alt="{escape(key)}" '
                    f'src="data:image/png;base64,{source}"></figure>'
                )
    return "".join(parts)


def _keys_of(title: str, named: Sequence[Mapping[str, object]]) -> list[str]:
    keys = sorted({key for each in named for key in each}, key=natural)
    return [key for key in keys if (where := place(key)) is not None and where.section == title]


def _swatch(colour: int, second_run: bool = False) -> str:
    style = f"line c{colour % 10}" + (" second" if second_run else "")
    return (
        '<svg class="swatch" viewBox="0 0 24 8" aria-hidden="true">'
        f'<line class="{style}" x1="0" x2="24" y1="4" y2="4"/></svg>'
    )
