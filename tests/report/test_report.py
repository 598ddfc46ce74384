"""`lightning-vivit report`: what is on the page, and that it needs nothing else."""

from __future__ import annotations

import math
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch.utils.tensorboard import SummaryWriter

from lightning_vivit import GGNSpectrumMonitor
from lightning_vivit.cli import main
from lightning_vivit.demo import DigitsClassifier, DigitsDataModule
from lightning_vivit.loggers import LogEntry
from lightning_vivit.loggers.csv import CSVWriter
from lightning_vivit.loggers.tensorboard import TensorBoardWriter
from lightning_vivit.report import read_run
from lightning_vivit.report.drawing import MAX_POINTS, Line, histogram_chart, line_chart, thinned
from lightning_vivit.report.plots import plots
from lightning_vivit.report.runs import Histogram
from lightning_vivit.report.scale import Scale
from lightning_vivit.statistics import SECTIONS

KEYS = [
    *(f"ggn/eigenvalue_{i}" for i in (1, 2, 10)),
    "ggn/sharpness_lr",
    "directions/gamma_snr_1",
    "directions/gradient_norm",
    "ntk/distance_first",
    "ntk/distance_previous",
    "again/ggn/trace",
    "ggn/net.0/trace",
    "ggn/net.2/trace",
    "cost/seconds",
]
EVIL = "train_loss<script>alert('&')</script>"
STEPS = (0, 10, 20)


def value(key: str, step: int, scale: float = 1.0) -> float:
    return scale * (1 + len(key)) * math.exp(0.37 * step) / 7


def single(points: dict[int, float]) -> dict[int, np.float32]:
    """As event files have it."""
    return {step: np.float32(number) for step, number in points.items()}


def log(logger: TensorBoardLogger | CSVLogger, scale: float = 1.0) -> Path:
    """Write a run by the writers that the monitors use."""
    writer = TensorBoardWriter if isinstance(logger, TensorBoardLogger) else CSVWriter
    for step in STEPS:
        scalars = {key: value(key, step, scale) for key in KEYS}
        generator = torch.Generator().manual_seed(step)
        histograms = {"ggn/eigenvalues_log10": torch.randn(100, generator=generator)}
        writer(logger).write(LogEntry(step, scalars, histograms, monitor="ggn"))  # type: ignore[arg-type]
        logger.log_metrics({EVIL: 1 / (1 + step), "accuracy": 0.5}, step)
    if isinstance(logger, TensorBoardLogger):
        image = torch.zeros(3, 4, 5)
        logger.experiment.add_image("ntk/kernel", image, 20)
    logger.finalize("success")
    return Path(logger.log_dir)


@pytest.fixture
def board(tmp_path: Path) -> Path:
    return log(TensorBoardLogger(tmp_path, name="board & <b>", version=0))


class Page(HTMLParser):
    """Tags, attributes, tables and text of a page."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self._cell: list[str] | None = None
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self._cell = []

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, "badly nested"
        if tag in ("td", "th") and self._cell is not None:
            self.tables[-1][-1].append("".join(self._cell))
            self._cell = None

    def handle_data(self, data: str) -> None:
        if self._cell is not None:
            self._cell.append(data)
        if not self.open or self.open[-1] != "style":
            self.text.append(data)

    def numbers(self) -> dict[str, dict[int, float]]:
        """Key (and run) -> step -> value, from the tables of numbers."""
        found: dict[str, dict[int, float]] = {}
        for head, *rows in self.tables:
            if head[0] == "step":
                for at, key in enumerate(head[1:], start=1):
                    found[key] = {int(row[0]): float(row[at]) for row in rows if row[at]}
        return found


def made(tmp_path: Path, *arguments: str) -> Page:
    output = tmp_path / "page.html"
    with pytest.raises(SystemExit) as left:
        main(["report", *arguments, "-o", str(output)])
    assert left.value.code == 0
    content = output.read_text()
    shown = Page(content)
    assert shown.open == []
    return shown


def test_every_key_and_number_of_the_events_is_there(tmp_path: Path, board: Path) -> None:
    shown = made(tmp_path, str(board))
    numbers = shown.numbers()
    assert set(numbers) == {*KEYS, EVIL}  # the accuracy is neither ours nor a loss
    for key in KEYS:
        assert single(numbers[key]) == single({step: value(key, step) for step in STEPS})
    titles = [
        attrs["aria-label"] for tag, attrs in shown.tags if tag == "svg" and attrs.get("role")
    ]
    assert titles == [
        EVIL,
        "Learning rate x sharpness / limit, stable below 1 ggn/sharpness_lr",
        "Leading eigenvalues of the GGN ggn/eigenvalue_i",
        "Trace of the GGN again/ggn/trace",
        "Trace of the GGN ggn/*/trace",
        "ggn/eigenvalues_log10",
        "Signal to noise of the slopes, per sample directions/gamma_snr_i",
        "Distance to the first and the previous kernel ntk/distance_first, distance_previous",
        "Gradient norm directions/gradient_norm",
        "Time of a monitored step, in seconds cost/seconds",
    ]
    sections = [attrs["id"] for tag, attrs in shown.tags if tag == "section" and "id" in attrs]
    assert sections == ["training", "curvature", "directions", "kernel", "gradients", "cost"]
    pictures = [attrs for tag, attrs in shown.tags if tag == "img"]
    assert [picture["alt"] for picture in pictures] == ["ntk/kernel"]


def test_the_page_needs_nothing_else_and_runs_nothing(tmp_path: Path, board: Path) -> None:
    shown = made(tmp_path, str(board), str(log(CSVLogger(tmp_path, name="csv"))))
    for tag, attrs in shown.tags:
        assert tag not in ("script", "iframe", "object", "b><script")
        assert not any(name.startswith("on") for name in attrs)
        for name in ("src", "href", "xlink:href"):
            target = attrs.get(name)
            assert target is None or target.startswith(("data:", "#")), target
        assert "url(" not in (attrs.get("style") or "")
    style = (tmp_path / "page.html").read_text().split("<style>")[1].split("</style>")[0]
    assert "url(" not in style and "@import" not in style
    assert "prefers-color-scheme: dark" in style and style.count("{") == style.count("}")
    text = "".join(shown.text)
    assert EVIL in text and "board & <b>" in text


def test_two_runs_share_axes(tmp_path: Path, board: Path) -> None:
    other = log(TensorBoardLogger(tmp_path, name="other", version=0), scale=2.0)
    shown = made(tmp_path, str(board), str(other))
    numbers = shown.numbers()
    first, second = "board & <b>/version_0", "other/version_0"
    assert set(numbers) == {f"{key} ({run})" for key in [*KEYS, EVIL] for run in (first, second)}
    for key in KEYS:
        for run, scale in ((first, 1.0), (second, 2.0)):
            expected = {step: value(key, step, scale) for step in STEPS}
            assert single(numbers[f"{key} ({run})"]) == single(expected)
    plotted = [attrs for tag, attrs in shown.tags if tag == "polyline"]
    assert len(plotted) == len(numbers)
    assert sum("second" in str(attrs["class"]) for attrs in plotted) == len(plotted) / 2
    assert len([tag for tag, _ in shown.tags if tag == "img"]) == 2


def test_csv_files_give_the_same_page(tmp_path: Path, board: Path) -> None:
    written = log(CSVLogger(tmp_path, name="csv", version=0))
    shown, expected = made(tmp_path, str(written)), made(tmp_path, str(board))
    numbers, of_events = shown.numbers(), expected.numbers()
    assert set(numbers) == set(of_events)
    for key in KEYS:
        assert numbers[key] == {step: value(key, step) for step in STEPS}
    found = read_run(written).histograms["ggn/eigenvalues_log10"]
    same = read_run(board).histograms["ggn/eigenvalues_log10"]
    assert found.step == same.step == 20 and found.counts == same.counts
    assert found.edges == pytest.approx(same.edges)


def test_histogram_counts_lie_between_their_edges(board: Path) -> None:
    found = read_run(board).histograms["ggn/eigenvalues_log10"]
    values = torch.randn(100, generator=torch.Generator().manual_seed(20)).double().numpy()
    counts, _ = np.histogram(values, bins=found.edges)
    assert found.counts == counts.tolist() and sum(counts) == 100


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path / "run")) as writer:
        for step, each in enumerate([1.0, math.nan, 3.0, math.inf, 5.0, 6.0]):
            writer.add_scalar("ggn/trace", each, step)
            writer.add_scalar("ntk/trace", math.nan, step)
    shown = made(tmp_path, str(tmp_path / "run"))
    trace = shown.numbers()["ggn/trace"]
    assert math.isnan(trace[1]) and trace[3] == math.inf and trace[5] == 6
    assert len([tag for tag, _ in shown.tags if tag == "polyline"]) == 1  # only 4 to 5
    assert "no finite value" in "".join(shown.text)


def test_a_single_run_below_is_found_and_repeated_steps_keep_the_last(tmp_path: Path) -> None:
    folder = tmp_path / "logs" / "version_3"
    for number, name in {1.0: "b", 2.0: "a"}.items():  # the order of the names is not that of time
        with SummaryWriter(str(folder)) as writer:
            writer.add_scalar("ggn/trace", number, 7)
        (file,) = folder.glob("events.out.*")
        file.rename(folder / f"{name}.tfevents.1")
    for file in folder.iterdir():
        file.rename(folder / f"events.out.tfevents.1.{file.name}")
    run = read_run(tmp_path)
    assert run.path == (tmp_path / "logs" / "version_3").resolve()
    assert run.scalars == {"ggn/trace": {7: 2.0}}


def test_long_series_are_thinned_and_say_so(tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path / "run")) as writer:
        writer.add_scalar("ggn/trace", 1.0, 0)
        for step in range(5000):
            writer.add_scalar("train/loss", 100.0 if step == 2345 else 1.0, step)
    shown = made(tmp_path, str(tmp_path / "run"))
    assert "one in 3 of 5000 steps" in "".join(shown.text)
    assert len(shown.numbers()["train/loss"]) == 1667
    points = [(step, 100.0 if step == 2345 else 1.0) for step in range(5000)]
    assert (2345, 100.0) in thinned(points) and len(thinned(points)) <= MAX_POINTS + 2


def errors(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as left:
        main(["report", *arguments])
    assert left.value.code == 2
    return capsys.readouterr().err


def test_what_cannot_be_reported_is_said(
    tmp_path: Path, board: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty, foreign = tmp_path / "empty", tmp_path / "foreign"
    empty.mkdir()
    with SummaryWriter(str(foreign)) as writer:
        writer.add_scalar("train/loss", 1.0, 0)
    assert "does not exist" in errors(capsys, str(tmp_path / "nowhere"))
    assert "no TensorBoard event files" in errors(capsys, str(empty))
    assert "no value of a monitor among its 1 scalars" in errors(capsys, str(foreign))
    several = errors(capsys, str(tmp_path))
    assert "logs of 2 runs" in several and str(board) in several
    assert "page.html" in errors(capsys, str(board), "-o", str(empty / "no" / "page.html"))
    assert "LOGDIR" in errors(capsys)
    with pytest.raises(SystemExit) as left:
        main(["report", "--help"])
    assert left.value.code == 0 and "one self-contained HTML page" in capsys.readouterr().out


def test_scales() -> None:
    linear = Scale.around([0.0, 10.0], 100, 200)
    assert not linear.log and linear.at(5.0) == pytest.approx(150)
    assert linear.ticks() == [0, 5, 10]
    log = Scale.around([0.01, 100.0], 0, 100)
    assert log.log and log.at(1.0) == pytest.approx(50)
    assert log.ticks() == pytest.approx([0.01, 0.1, 1, 10, 100])
    assert not Scale.around([1e-14, 1.0], 0, 1).log  # rounding, not decades
    assert not Scale.around([-1.0, 100.0], 0, 1).log
    for values in ([3.0], [0.0, 0.0], [], [-2.0, -2.0], [1e30, 1e30]):
        axis = Scale.around(values, 0, 1)
        assert len(axis.ticks()) > 1 and all(0 < axis.at(each) < 1 for each in values)


def test_lines_are_where_their_values_are() -> None:
    drawn = line_chart([Line("a", 3, False, [(0, 1.0), (5, 2.0), (10, 3.0)])], "t", limit=2.0)
    ((style, points),) = drawn.curves
    (x0, y0), (x1, y1), (x2, y2) = points
    assert style == "c3" and drawn.limit == y1
    assert x1 - x0 == pytest.approx(x2 - x1) and y0 - y1 == pytest.approx(y1 - y2)
    assert x0 < x1 and y0 > y1  # up is up
    assert [(dot.x, dot.y) for dot in drawn.dots] == points
    assert drawn.dots[1].says == "a, step 5: 2"


def test_lines_of_a_chart_are_in_order_of_rank() -> None:
    (chart,) = plots(["ggn/eigenvalue_10", "ggn/eigenvalue_2", "ggn/eigenvalue_1"])
    assert list(chart.lines.values()) == ["1", "2", "10"]
    (chart,) = plots(["ntk/net.10/trace", "ntk/net.2/trace"])
    assert list(chart.lines.values()) == ["net.2", "net.10"]


def test_histograms_are_densities_whatever_their_bins() -> None:
    coarse = Histogram(3, [0.0, 2.0], [10.0])
    fine = Histogram(3, [0.0, 1.0, 2.0], [10.0, 10.0])
    drawn = histogram_chart([(0, coarse), (1, fine)], "t")
    assert len(drawn.bars) == 3 and len({bar.y for bar in drawn.bars}) == 1
    assert all(bar.says.endswith("density 0.5") for bar in drawn.bars)
    wide, first, second = drawn.bars
    assert wide.width == pytest.approx(first.width + second.width)
    assert second.x == pytest.approx(first.x + first.width)


def test_every_scalar_of_the_table_has_a_plot_in_its_category() -> None:
    for section in SECTIONS.values():
        for statistic in section.statistics:
            if statistic.kind == "scalar":
                key = f"{section.name}/{statistic.stem}" + {"_i": "_3", "": ""}.get(
                    statistic.ending, "/net.0"
                )
                (plot,) = plots([f"mine-again/{key}"])
                assert plot.category == statistic.category
                assert plot.title == statistic.title(section.words)
                assert plot.path == f"mine-again/{section.name}/{statistic.name}"


def test_a_run_over_the_hessian_shows_its_charts(tmp_path: Path) -> None:
    options = {"k": 2, "every_n_steps": 1, "data": "train", "max_samples": 8, "on_error": "raise"}
    layers = {"param_groups": {"first": ["net.0.*"], "last": ["net.10.*"]}, "prefix": "two/"}
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=2,
        logger=TensorBoardLogger(tmp_path, name="run", version="0"),
        callbacks=[
            GGNSpectrumMonitor(matrix="hessian", figures_every=1, **options),
            GGNSpectrumMonitor(matrix="hessian", figures_every=1, **options, **layers),
        ],
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(DigitsClassifier(width=2), DigitsDataModule(batch_size=16))
    shown = made(tmp_path, str(tmp_path / "run" / "0"))
    drawn = [attrs["aria-label"] for tag, attrs in shown.tags if tag == "svg" and attrs.get("role")]
    for chart in (
        "Learning rate x sharpness / limit, stable below 1 (Hessian) hessian/sharpness_lr",
        "Leading eigenvalues of the Hessian hessian/eigenvalue_i",
        "Trace of the Hessian hessian/trace, trace_error",
        "Overlap with the previous top subspace (Hessian) hessian/subspace_overlap",
        "Matrix-vector products of a search (Hessian) hessian/products",
        "Trace of the Hessian two/hessian/*/trace, trace_error",
        "Leading eigenvalues of the Hessian two/hessian/last/eigenvalue_i",
    ):
        assert drawn.count(chart) == 1, chart
    run = read_run(tmp_path / "run" / "0")
    assert {key for key in run.scalars if "hessian" in key} <= set(shown.numbers())
    glance = {row[0]: row[1] for row in shown.tables[0][1:]}
    first, last = run.scalars["hessian/eigenvalue_1"].values()
    assert glance["hessian/eigenvalue_1"] == f"{first:.4g} → {last:.4g}"
    pictures = {attrs["alt"] for tag, attrs in shown.tags if tag == "img"}
    spectra = {f"two/hessian/{group}/spectrum" for group in ("first", "last")}
    assert pictures == {"hessian/spectrum", "two/hessian/layers", *spectra}


def test_a_value_beyond_its_limit_is_marked(tmp_path: Path) -> None:
    for name, last in {"over": 1.5, "under": 0.5}.items():
        with SummaryWriter(str(tmp_path / name)) as writer:
            for step, each in enumerate([0.2, last]):
                writer.add_scalar("ggn/sharpness_lr", each, step)
        shown = made(tmp_path, str(tmp_path / name))
        marked = [attrs["title"] for tag, attrs in shown.tags if attrs.get("class") == "wrong"]
        assert marked == ["the learning rate is too large for the curvature"] * (last > 1)


def loaded(path: Path) -> subprocess.CompletedProcess[str]:
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    assert browser, f"the browser tests need one of {', '.join(names)}"
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    command = [browser, *options, "--dump-dom", path.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.browser
def test_a_browser_shows_it_without_an_error(tmp_path: Path, board: Path) -> None:
    other = log(CSVLogger(tmp_path, name="csv", version=0), scale=2.0)
    made(tmp_path, str(board), str(other))
    done = loaded(tmp_path / "page.html")
    assert done.returncode == 0
    assert "CONSOLE" not in done.stderr
    assert done.stdout.count("<svg viewBox") == 10 and "ggn/eigenvalue_10" in done.stdout
    content = (tmp_path / "page.html").read_text()
    broken = tmp_path / "broken.html"
    broken.write_text(content.replace("</main>", '<img src="https://example.org/a.png"></main>'))
    assert "CONSOLE" in loaded(broken).stderr  # an error would be seen
