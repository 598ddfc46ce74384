"""Keys, steps and loggers: what a run leaves in TensorBoard, CSV files and callback_metrics."""

from __future__ import annotations

import csv as csv_module
import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from monitor_toys import (
    Classifier,
    RecordingLogger,
    blobs,
    csv,
    events,
    loader,
    tensorboard,
    trainer,
)
from torch import Tensor

from lightning_vivit.callbacks import DirectionalDerivativesMonitor, GGNSpectrumMonitor, NTKMonitor
from lightning_vivit.loggers import LogEntry, LogWriter, writer_for
from lightning_vivit.loggers.tensorboard import TensorBoardWriter

K = 3
RANKED = {
    "ggn": ["eigenvalue"],
    "directions": ["gamma_mean", "gamma_snr", "lambda_mean", "lambda_snr", "newton_step"],
    "ntk": ["eigenvalue"],
}
SINGLE = {
    "ggn": ["trace", "effective_rank", "sharpness_lr", "subspace_overlap"],
    "directions": ["gradient_share"],
    "ntk": [
        "trace",
        "condition_number",
        "effective_rank",
        "alignment",
        "distance_first",
        "distance_previous",
    ],
}
HISTOGRAMS = {
    "ggn/eigenvalues_log10",
    "ntk/eigenvalues_log10",
    *(f"directions/{name}_{i}" for name in ("gamma", "lambda") for i in range(1, K + 1)),
}
LATER = {"ggn/subspace_overlap", "ntk/distance_previous"}  # from the second monitored step on


def all_keys() -> set[str]:
    ranked = {
        f"{section}/{name}_{i}"
        for section, names in RANKED.items()
        for name in names
        for i in range(1, K + 1)
    }
    return ranked | {f"{section}/{name}" for section, names in SINGLE.items() for name in names}


def monitors(**options: Any) -> list[pl.Callback]:
    options = {"k": K, "data": "train", "on_error": "raise", **options}
    kinds = (GGNSpectrumMonitor, DirectionalDerivativesMonitor, NTKMonitor)
    return [kind(**options) for kind in kinds]


def steps_of(log: RecordingLogger, key: str) -> list[int]:
    return list(log.values(key))


def test_every_key_and_histogram_is_in_the_event_files(tmp_path: Path) -> None:
    fit = trainer(tmp_path, *monitors(every_n_steps=2, max_samples=8), logger=tensorboard(tmp_path))
    fit.fit(Classifier(), loader())
    found = events(tmp_path)
    tags = found.Tags()
    assert all_keys() <= set(tags["scalars"])
    assert set(tags["histograms"]) == HISTOGRAMS
    for key in all_keys():
        points = found.Scalars(key)
        assert [point.step for point in points] == ([2, 4] if key in LATER else [0, 2, 4])
        assert all(math.isfinite(point.value) for point in points)
    for key in HISTOGRAMS:
        assert [point.step for point in found.Histograms(key)] == [0, 2, 4]
    assert found.Histograms("directions/gamma_1")[0].histogram_value.num == 8
    logged = [f"ggn/eigenvalue_{i}" for i in range(1, K + 1)]
    first = [found.Scalars(key)[0].value for key in logged]
    assert first == sorted(first, reverse=True)


@pytest.mark.parametrize("log_every_n_steps", [1, 4, 1000])
def test_steps_are_exact_whatever_the_logging_interval(
    tmp_path: Path, log_every_n_steps: int
) -> None:
    log = RecordingLogger()
    fit = trainer(
        tmp_path,
        GGNSpectrumMonitor(k=1, every_n_steps=5),
        NTKMonitor(k=1, steps=[3, 11]),
        logger=log,
        log_every_n_steps=log_every_n_steps,
        max_epochs=3,
    )
    fit.fit(Classifier(), loader())
    assert steps_of(log, "ggn/trace") == [0, 5, 10, 15]
    assert steps_of(log, "ntk/trace") == [3, 11]


def test_every_n_epochs(tmp_path: Path) -> None:
    log = RecordingLogger()
    fit = trainer(tmp_path, GGNSpectrumMonitor(every_n_epochs=2), logger=log, max_epochs=5)
    fit.fit(Classifier(), loader())
    assert steps_of(log, "ggn/trace") == [0, 12, 24]


def test_points_lie_over_the_train_loss_and_the_learning_rate(tmp_path: Path) -> None:
    log = RecordingLogger()
    losses: dict[int, float] = {}

    class Watcher(pl.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, _: int) -> None:
            with torch.no_grad():
                loss = torch.nn.functional.cross_entropy(pl_module(batch[0]), batch[1])
            losses[trainer.global_step] = float(loss)

    fit = trainer(
        tmp_path,
        Watcher(),
        GGNSpectrumMonitor(every_n_steps=1),
        LearningRateMonitor(),
        logger=log,
        log_every_n_steps=1,
    )
    fit.fit(Classifier(), loader())
    trained = log.values("train_loss")
    assert steps_of(log, "ggn/trace") == list(trained) == steps_of(log, "lr-SGD")
    assert trained == pytest.approx(losses)


@pytest.mark.parametrize("kind", ["accumulation", "lbfgs", "skipped", "manual"])
def test_one_point_for_each_step_of_the_x_axis(tmp_path: Path, kind: str) -> None:
    class Lbfgs(Classifier):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.LBFGS(self.parameters(), lr=0.01, max_iter=3)

    class Skipping(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            return None if self.trainer.training and batch_idx == 1 else loss

    class Manual(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
            for _ in range(2):
                optimizer = self.optimizers()
                optimizer.zero_grad()  # type: ignore[union-attr]
                self.manual_backward(torch.nn.functional.cross_entropy(self(batch[0]), batch[1]))
                optimizer.step()  # type: ignore[union-attr]

    def problem(module: pl.LightningModule, batch: Any) -> Any:
        from lightning_vivit.problem.problem import Problem

        return Problem(module, torch.nn.CrossEntropyLoss(), batch[0], batch[1])

    module = {"accumulation": Classifier, "lbfgs": Lbfgs, "skipped": Skipping, "manual": Manual}
    log = RecordingLogger()
    fit = trainer(
        tmp_path,
        GGNSpectrumMonitor(
            every_n_steps=2, on_error="raise", problem=problem if kind == "manual" else None
        ),
        logger=log,
        log_every_n_steps=1,
        accumulate_grad_batches=3 if kind == "accumulation" else 1,
        max_epochs=2,
    )
    fit.fit(module[kind](), loader())
    expected = {"accumulation": [0, 2]}.get(kind, [0, 2, 4, 6, 8, 10])
    assert steps_of(log, "ggn/trace") == expected


def test_checkpoint_and_early_stopping_watch_a_key(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(
        tmp_path / "best", monitor="ggn/eigenvalue_1", mode="max", filename="{step}"
    )
    stopping = EarlyStopping("ntk/trace", patience=2, min_delta=1e9, mode="max")
    fit = trainer(
        tmp_path,
        checkpoint,
        stopping,
        GGNSpectrumMonitor(every_n_steps=4),
        NTKMonitor(steps=[0]),  # its only value has to be there in every later epoch
        enable_checkpointing=True,
        max_epochs=20,
        logger=RecordingLogger(),
    )
    fit.fit(Classifier(), loader(), loader())
    assert fit.current_epoch == 3
    values = fit.logger.values("ggn/eigenvalue_1")  # type: ignore[union-attr]
    at_validation = [values[4], values[8], values[16]]  # the last ones before steps 6, 12, 18
    assert checkpoint.best_model_score == pytest.approx(max(at_validation))
    assert isinstance(fit.callback_metrics["ntk/trace"], Tensor)


def test_two_loggers_at_once_and_keys_that_come_later(tmp_path: Path) -> None:
    loggers = [tensorboard(tmp_path), csv(tmp_path)]
    fit = trainer(
        tmp_path,
        *monitors(steps=[1, 3]),
        logger=loggers,
        log_every_n_steps=1,
    )
    fit.fit(Classifier(), loader())
    with (tmp_path / "csv" / "0" / "metrics.csv").open() as file:
        rows = list(csv_module.DictReader(file))
    assert all_keys() <= set(rows[0])
    found = events(tmp_path)
    for key in all_keys():
        written = {int(row["step"]): float(row[key]) for row in rows if row[key]}
        assert list(written) == ([3] if key in LATER else [1, 3])
        shown = {point.step: point.value for point in found.Scalars(key)}
        assert written == pytest.approx(shown, rel=1e-6)
    assert len([row for row in rows if row["train_loss"]]) == 6


def test_prefix_of_the_logger_is_used_for_histograms_too(tmp_path: Path) -> None:
    logger = tensorboard(tmp_path)
    logger._prefix = "mine"
    trainer(tmp_path, GGNSpectrumMonitor(steps=[0]), logger=logger).fit(Classifier(), loader())
    tags = events(tmp_path).Tags()
    assert "mine-ggn/trace" in tags["scalars"]
    assert tags["histograms"] == ["mine-ggn/eigenvalues_log10"]


def test_unknown_logger_gets_scalars(tmp_path: Path) -> None:
    log = RecordingLogger()
    assert type(writer_for(log)) is LogWriter
    assert type(writer_for(tensorboard(tmp_path))) is TensorBoardWriter
    trainer(tmp_path, *monitors(every_n_steps=3), logger=log).fit(Classifier(), loader())
    assert log.seen() >= all_keys()


def test_empty_and_non_finite_histograms_are_left_out(tmp_path: Path) -> None:
    logger = tensorboard(tmp_path)
    values = {
        "empty": torch.empty(0),
        "nothing": torch.tensor([math.nan, math.inf]),
        "some": torch.tensor([1.0, math.nan, 3.0]),
        "same": torch.ones(4),
    }
    writer_for(logger).write(LogEntry(5, {"a": 1.0}, values))
    found = events(tmp_path)
    assert set(found.Tags()["histograms"]) == {"some", "same"}
    assert found.Histograms("some")[0].histogram_value.num == 2
    assert found.Histograms("some")[0].step == 5


def test_fast_dev_run(tmp_path: Path) -> None:
    fit = trainer(tmp_path, *monitors(), fast_dev_run=True, logger=True)
    fit.fit(Classifier(), loader(), loader())
    assert all_keys() - LATER <= set(fit.callback_metrics)


def test_without_a_logger_one_word_and_the_values_in_callback_metrics(tmp_path: Path) -> None:
    fit = trainer(tmp_path, *monitors(every_n_steps=2), logger=False)
    with pytest.warns(UserWarning, match=r"no logger to write to") as caught:
        fit.fit(Classifier(), loader())
    assert len([w for w in caught if "no logger to write to" in str(w.message)]) == 1
    assert all_keys() <= set(fit.callback_metrics)


def test_groups_and_prefix_are_in_the_keys(tmp_path: Path) -> None:
    log = RecordingLogger()
    fit = trainer(
        tmp_path,
        GGNSpectrumMonitor(k=2, param_groups="layer"),
        GGNSpectrumMonitor(k=2, prefix="first8/", max_samples=4),
        NTKMonitor(k=2, param_groups={"head": ["net.2.*"]}),
        logger=log,
    )
    fit.fit(Classifier(), loader())
    assert {"ggn/net.0/eigenvalue_1", "ggn/net.2/trace", "first8/ggn/trace"} <= log.seen()
    assert "ntk/trace" in log.seen()
    assert "ggn/trace" not in log.seen()


def test_a_smaller_last_batch_logs_what_there_is(tmp_path: Path) -> None:
    log = RecordingLogger()
    fit = trainer(
        tmp_path,
        *monitors(k=20, every_n_steps=1, data="batch"),
        logger=log,
    )
    fit.fit(Classifier(), loader(blobs(18)))  # 8, 8, 2 samples of 3 outputs
    assert steps_of(log, "ggn/eigenvalue_20") == [0, 1]
    assert steps_of(log, "ggn/eigenvalue_6") == [0, 1, 2]
    assert steps_of(log, "ggn/trace") == steps_of(log, "ntk/trace") == [0, 1, 2]
