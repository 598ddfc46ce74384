"""Weights & Biases, MLflow and Comet with their real libraries, offline."""

from __future__ import annotations

import json
import re
import struct
import time
import zipfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CometLogger, Logger, MLFlowLogger, WandbLogger
from matplotlib.figure import Figure
from monitor_toys import Classifier, loader, trainer

from lightning_vivit import DirectionalDerivativesMonitor, GGNSpectrumMonitor, NTKMonitor
from lightning_vivit.loggers import Findings, LogEntry, publish

pytestmark = pytest.mark.loggers

STEPS = [0, 2, 5]
HISTOGRAMS = {"ggn/eigenvalues_log10", "directions/gamma_1", "ntk/eigenvalues_log10"}


class WithFigure(GGNSpectrumMonitor):
    def measure(self, evaluation: Any, group: str) -> Findings:
        found = super().measure(evaluation, group)
        found.figures = {"curve": draw}
        return found


def draw() -> Figure:
    figure = Figure(figsize=(2, 1), dpi=50)
    figure.subplots().plot([1, 2])
    return figure


def fit(root: Path, logger: Logger) -> pl.Trainer:
    options: dict[str, Any] = {"k": 2, "steps": STEPS, "on_error": "raise", "max_samples": 6}
    options["figures_every"] = 1
    kinds = (WithFigure, DirectionalDerivativesMonitor, NTKMonitor)
    monitors = [kind(**options) for kind in kinds]
    running = trainer(root, *monitors, logger=logger, log_every_n_steps=4, max_epochs=2)
    running.fit(Classifier(), loader())
    return running


def wandb_records(path: Path) -> list[Any]:
    """The records of an offline run: 7 bytes of header, then blocks as in LevelDB's log."""
    from wandb.proto import wandb_internal_pb2 as protocol

    content = path.read_bytes()
    position, found, part = 7, [], b""
    while position + 7 <= len(content):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + 7])
        if position + 7 + length > len(content):  # still being written
            break
        part += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = protocol.Record()
            record.ParseFromString(part)
            found.append(record)
            part = b""
    return found


def finished(path: Path) -> list[Any]:
    """The records up to the run's exit: another process writes them, also after `finish`."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        records = wandb_records(path)
        if any(record.WhichOneof("record_type") == "exit" for record in records):
            return records
        time.sleep(0.2)
    raise AssertionError(f"{path} has no exit record")


def wandb_history(root: Path) -> list[dict[str, Any]]:
    path = next((root / "wandb").rglob("run-*.wandb"))
    rows = []
    for record in finished(path):
        if record.WhichOneof("record_type") == "history":
            row: dict[str, Any] = {}
            for item in record.history.item:
                key, *inner = item.nested_key or [item.key]
                value = json.loads(item.value_json)
                if inner:
                    row.setdefault(key, {})[inner[0]] = value
                else:
                    row[key] = value
            rows.append(row)
    return rows


@pytest.fixture
def wandb_logger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WandbLogger:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    return WandbLogger(save_dir=tmp_path, offline=True, project="test")


@pytest.mark.filterwarnings("ignore")
def test_wandb(tmp_path: Path, wandb_logger: WandbLogger) -> None:
    import wandb

    running = fit(tmp_path, wandb_logger)
    wandb.finish()
    rows = wandb_history(tmp_path)
    by_key: dict[str, dict[int, Any]] = defaultdict(dict)
    for row in rows:
        for key, value in row.items():
            by_key[key][row["trainer/global_step"]] = value
    assert list(by_key["ggn/trace"]) == list(by_key["ntk/trace"]) == STEPS
    assert list(by_key["train_loss"]) == [3, 7, 11]
    assert by_key["ggn/trace"][5] == pytest.approx(float(running.callback_metrics["ggn/trace"]))
    for key in HISTOGRAMS:
        assert list(by_key[key]) == STEPS
        histogram = by_key[key][0]
        assert histogram["_type"] == "histogram" and 0 < sum(histogram["values"]) <= 18
    assert list(by_key["ggn/curve"]) == STEPS
    shown = by_key["ggn/curve"][0]
    assert shown["_type"] == "image-file" and (shown["width"], shown["height"]) == (100, 50)
    assert len(list((tmp_path / "wandb").rglob("curve_*.png"))) >= 1


@pytest.mark.filterwarnings("ignore")
def test_wandb_histogram_and_figure_of_one_key(tmp_path: Path, wandb_logger: WandbLogger) -> None:
    import wandb

    samples = {"ggn/a": torch.tensor([1.0, 2.0]), "ggn/none": torch.tensor([float("nan")])}
    publish(trainer(tmp_path, logger=wandb_logger), LogEntry(7, {}, samples, {"ggn/a": draw}))
    wandb.finish()
    (row,) = wandb_history(tmp_path)
    assert row["ggn/a"]["_type"] == "histogram"
    assert row["ggn/a_figure"]["_type"] == "image-file"
    assert "ggn/none" not in row


@pytest.mark.filterwarnings("ignore")
def test_mlflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    logger = MLFlowLogger(save_dir=str(tmp_path / "mlruns"), prefix="mine")
    with caplog.at_level("INFO", "lightning.pytorch"):
        running = fit(tmp_path, logger)
    client, run = logger.experiment, logger.run_id
    for key in ("ggn/trace", "directions/gamma_mean_1", "ntk/trace"):
        history = client.get_metric_history(run, f"mine-{key}")
        assert [point.step for point in history] == STEPS
        assert history[-1].value == pytest.approx(float(running.callback_metrics[key]))
    images = [item.path for item in client.list_artifacts(run, "images")]
    for step in STEPS:
        assert any(re.search(rf"curve[+%]step[+%]{step}[+%]", path) for path in images), images
    told = [line for line in caplog.messages if line.startswith("MLFlowLogger")]
    assert len(told) == 1 and "no histograms" in told[0]


@pytest.mark.filterwarnings("ignore")
def test_mlflow_takes_more_scalars_than_one_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    logger = MLFlowLogger(save_dir=str(tmp_path / "mlruns"))
    scalars = {f"ggn/{i}": float(i) for i in range(1003)}
    publish(trainer(tmp_path, logger=logger), LogEntry(4, scalars))
    assert logger.run_id is not None
    assert logger.experiment.get_run(logger.run_id).data.metrics == scalars


@pytest.mark.filterwarnings("ignore")
def test_comet(tmp_path: Path) -> None:
    import comet_ml

    logger = CometLogger(online=False, offline_directory=str(tmp_path), prefix="mine")
    quiet = {"log_code": False, "log_git_metadata": False, "log_env_details": False}
    # Lightning 2.6 turns an offline experiment of its own off.
    logger._experiment = comet_ml.OfflineExperiment(
        offline_directory=str(tmp_path), project_name="test", auto_output_logging=False, **quiet
    )
    running = fit(tmp_path, logger)
    logger.experiment.end()
    with zipfile.ZipFile(next(tmp_path.glob("*.zip"))) as archive:
        lines = archive.read("messages.json").decode().splitlines()
    messages = [json.loads(line) for line in lines]
    values: dict[str, dict[int, float]] = defaultdict(dict)
    uploads: dict[tuple[str, str], list[int]] = defaultdict(list)
    for message in messages:
        payload = message["payload"]
        if message["type"] == "metric_msg":
            metric = payload["metric"]
            values[metric["metricName"]][metric["step"]] = metric["metricValue"]
        if message["type"] == "file_upload":
            extra = payload["additional_params"]
            name = extra.get("fileName") or extra.get("figName")
            uploads[payload["upload_type"], name].append(extra["step"])
    assert list(values["mine_ggn/trace"]) == list(values["mine_ntk/trace"]) == STEPS
    last = float(running.callback_metrics["ggn/trace"])
    assert values["mine_ggn/trace"][5] == pytest.approx(last)
    for key in HISTOGRAMS:
        assert uploads["histogram3d", f"mine_{key}"] == STEPS
    assert uploads["visualization", "mine_ggn/curve"] == STEPS
