"""Reports in loggers other than TensorBoard: what arrives, and what the others are told."""

from __future__ import annotations

import csv as csv_module
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from matplotlib.figure import Figure
from monitor_toys import Classifier, RecordingLogger, csv, loader, tensorboard, trainer

import lightning_vivit.loggers.csv as csv_writer
from lightning_vivit import GGNSpectrumMonitor, NTKMonitor
from lightning_vivit.loggers import LogEntry, publish
from lightning_vivit.loggers.pictures import binned, finite, image


def picture() -> Figure:
    figure = Figure(figsize=(2, 1), dpi=50)
    figure.subplots().plot([1, 2])
    return figure


def report(step: int = 3, monitor: str = "ggn", **arrays: torch.Tensor) -> LogEntry:
    return LogEntry(
        step,
        {f"{monitor}/trace": 1.5},
        {f"{monitor}/eigenvalues_log10": torch.tensor([1.0, 2.0, float("inf")])},
        {f"{monitor}/spectrum": picture},
        {f"{monitor}/{name}": array for name, array in arrays.items()},
        monitor=monitor,
    )


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv_module.DictReader(file))


def test_csv_has_scalars_at_the_steps_and_arrays_beside(tmp_path: Path) -> None:
    monitors = [
        GGNSpectrumMonitor(k=2, every_n_steps=2, max_samples=6),
        NTKMonitor(k=2, steps=[4], prefix="again/", max_samples=6),
    ]
    fit = trainer(tmp_path, *monitors, logger=csv(tmp_path), log_every_n_steps=3)
    fit.fit(Classifier(), loader())
    folder = tmp_path / "csv" / "0"
    rows = rows_of(folder / "metrics.csv")
    assert [row["step"] for row in rows if row["ggn/trace"]] == ["0", "2", "4"]
    assert [row["step"] for row in rows if row["again/ntk/trace"]] == ["4"]
    assert [row["step"] for row in rows if row["ggn/subspace_overlap"]] == ["2", "4"]
    assert [row["step"] for row in rows if row["train_loss"]] == ["2", "5"]
    names = sorted(str(path.relative_to(folder / "arrays")) for path in folder.rglob("*.npz"))
    steps = [f"ggn/step_{step:08d}.npz" for step in (0, 2, 4)]
    assert names == ["again_ntk/step_00000004.npz", *steps]
    with np.load(folder / "arrays" / names[0]) as found:
        assert found["again/ntk/kernel"].shape == (6, 6, 3, 3)
        meta = json.loads(str(found["__metadata__"]))
        shown = found["again/ntk/eigenvalues"]
        histogram = found["again/ntk/eigenvalues_log10"]
    assert meta["step"] == 4 and meta["left_out"] == []
    assert meta["histograms"] == ["again/ntk/eigenvalues_log10"]
    assert histogram == pytest.approx(np.log10(shown[shown > 0]))
    first = next(row for row in rows if row["again/ntk/trace"])
    assert float(first["again/ntk/eigenvalue_1"]) == pytest.approx(shown.max())


def test_csv_takes_later_keys_and_keeps_earlier_rows(tmp_path: Path) -> None:
    logger = csv(tmp_path)
    fit = trainer(tmp_path, logger=logger)
    publish(fit, report(1))
    publish(fit, report(2, monitor="ntk"))
    publish(fit, report(3))
    rows = rows_of(tmp_path / "csv" / "0" / "metrics.csv")
    assert [(row["step"], row["ggn/trace"], row["ntk/trace"]) for row in rows] == [
        ("1", "1.5", ""),
        ("2", "", "1.5"),
        ("3", "1.5", ""),
    ]


def test_csv_arrays_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(csv_writer, "MAX_FILE_BYTES", 1000)
    monkeypatch.setattr(csv_writer, "MAX_FOLDER_BYTES", 3000)
    fit = trainer(tmp_path, logger=csv(tmp_path))
    noise = torch.rand(100, generator=torch.Generator().manual_seed(0))
    with caplog.at_level(logging.INFO, "lightning.pytorch"):
        for step in range(10):
            publish(fit, report(step, small=noise, large=torch.zeros(1000)))
    folder = tmp_path / "csv" / "0" / "arrays"
    files = sorted(folder.rglob("*.npz"))
    sizes = [path.stat().st_size for path in files]
    assert 1 < len(files) < 10 and sum(sizes[:-1]) < 3000 <= sum(sizes)
    with np.load(files[0]) as found:
        assert json.loads(str(found["__metadata__"]))["left_out"] == ["ggn/large"]
        assert found["ggn/small"] == pytest.approx(noise.numpy())
    assert len([line for line in caplog.messages if "limit" in line]) == 1
    assert len(rows_of(tmp_path / "csv" / "0" / "metrics.csv")) == 10


def test_a_logger_that_shows_less_is_told_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loggers: list[Any] = [RecordingLogger(), csv(tmp_path), tensorboard(tmp_path)]
    fit = trainer(tmp_path, logger=loggers)
    caplog.clear()
    with caplog.at_level(logging.INFO, "lightning.pytorch"):
        publish(fit, LogEntry(0, {"ggn/trace": 1.0}))
        assert not caplog.messages
        publish(fit, report(1))
        publish(fit, report(2))
    first, second = caplog.messages
    assert first.startswith("RecordingLogger") and "no histograms and no figures" in first
    assert second.startswith("CSVLogger") and "no figures" in second and "histog" not in second
    assert loggers[0].values("ggn/trace") == {0: 1.0, 1: 1.5, 2: 1.5}
    another = trainer(tmp_path, logger=RecordingLogger())
    caplog.clear()
    with caplog.at_level(logging.INFO, "lightning.pytorch"):
        publish(another, report(1))
    assert len(caplog.messages) == 1


def test_nothing_is_drawn_for_loggers_without_figures(tmp_path: Path) -> None:
    def refuse() -> Figure:
        raise AssertionError("drawn")

    fit = trainer(tmp_path, logger=[RecordingLogger(), CSVLogger(tmp_path)])
    publish(fit, LogEntry(0, {"ggn/trace": 1.0}, figures={"ggn/spectrum": refuse}, monitor="ggn"))
    assert fit.callback_metrics["ggn/trace"] == 1.0


def test_histograms_of_values_that_hardly_differ() -> None:
    for values in ([0.0, 0.0], [1e8, 1e8 + 1e-7], [-3.0], [1.0, 1.0 + 1e-16, 1.0]):
        counts, edges = binned(np.array(values), 64)
        assert counts.sum() == len(values) and np.all(np.diff(edges) > 0)
    counts, edges = binned(np.array([0.0, 1.0, 4.0]), 4)
    assert counts.tolist() == [1, 1, 0, 1] and edges.tolist() == [0, 1, 2, 3, 4]
    assert finite(torch.tensor([[1.0, float("nan")], [float("-inf"), 2.0]])).tolist() == [1, 2]


def test_figures_are_closed_after_use() -> None:
    import matplotlib.pyplot as plt

    def draw() -> Figure:
        figure, axes = plt.subplots(figsize=(2, 1), dpi=50)
        axes.plot([1, 2])
        return figure

    before = plt.get_fignums()
    assert image(draw).size == (100, 50)
    assert image(picture).size == (100, 50)
    assert plt.get_fignums() == before


def test_the_loggers_libraries_are_not_imported() -> None:
    code = (
        "import sys, lightning_vivit.loggers, lightning_vivit.cli\n"
        "print([name for name in ('wandb', 'mlflow', 'comet_ml', 'safetensors')"
        " if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "[]", done.stderr
