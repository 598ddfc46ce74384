"""Monitors of the empirical Fisher in real training runs."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from monitor_toys import Classifier, loader
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from lightning_vivit import (
    DirectionalDerivativesMonitor,
    GGNSpectrumMonitor,
    NTKMonitor,
    OptionError,
)
from lightning_vivit.callbacks.raw import MonitorResult

STEPS = 3


def fit(folder: Path, *monitors, name: str = "run"):
    pl.seed_everything(0)
    csv, board = CSVLogger(folder, name=name), TensorBoardLogger(folder, name=f"{name}_board")
    trainer = pl.Trainer(
        max_steps=STEPS,
        logger=[csv, board],
        callbacks=list(monitors),
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    module = Classifier()
    trainer.fit(module, loader(shuffle=True))
    metrics = {key: float(value) for key, value in trainer.callback_metrics.items()}
    return metrics, module, EventAccumulator(board.log_dir, {"images": 0}).Reload(), csv.log_dir


class Gradients(pl.Callback):
    """The per-sample gradients before the last step, one backward pass for each in float64."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        copy = Classifier().double()
        copy.load_state_dict(pl_module.state_dict())
        rows = []
        for x, y in zip(*batch, strict=True):
            loss = F.cross_entropy(copy.net(x.double().unsqueeze(0)), y.unsqueeze(0))
            grads = torch.autograd.grad(loss, list(copy.net.parameters()))
            rows.append(torch.cat([grad.flatten() for grad in grads]))
        self.rows = torch.stack(rows)  # [N, P]


@pytest.mark.parametrize("method", ["auto", "matrix_free"])
def test_what_is_logged_is_that_of_the_explicit_gradients(tmp_path, method):
    kept: list[MonitorResult] = []
    options = {"k": 2, "every_n_steps": 1, "matrix": "empirical_fisher", "on_error": "raise"}
    options |= {"method": method, "tol": 1e-6}
    gradients = Gradients()
    metrics, trained, events, folder = fit(
        tmp_path,
        GGNSpectrumMonitor(**options),
        DirectionalDerivativesMonitor(on_result=kept.append, gradients=True, **options),
        GGNSpectrumMonitor(k=2, every_n_steps=1),
        NTKMonitor(k=2, every_n_steps=1),
        gradients,
    )
    rows = gradients.rows
    count = len(rows)
    values, vectors = torch.linalg.eigh(rows.T @ rows / count)
    assert metrics["empirical_fisher/eigenvalue_1"] == pytest.approx(float(values[-1]), rel=1e-4)
    assert metrics["empirical_fisher/eigenvalue_2"] == pytest.approx(float(values[-2]), rel=1e-4)
    trace = float(rows.square().sum() / count)
    error = metrics.get("empirical_fisher/trace_error", 0.0)
    assert metrics["empirical_fisher/trace"] == pytest.approx(trace, rel=1e-4, abs=6 * error)
    slopes: Tensor = rows @ vectors[:, [-1, -2]]
    slopes = slopes * torch.where(slopes.mean(0) < 0, -1.0, 1.0)
    start = "empirical_fisher_directions"
    assert metrics[f"{start}/gamma_mean_1"] == pytest.approx(float(slopes[:, 0].mean()), rel=1e-3)
    squares = slopes.square().mean(0)
    assert metrics[f"{start}/lambda_mean_2"] == pytest.approx(float(squares[1]), rel=1e-3)
    torch.testing.assert_close(
        kept[-1].arrays[f"{start}/gammas"].double(), slopes, rtol=1e-3, atol=1e-4
    )
    lambdas = kept[-1].arrays[f"{start}/lambdas"].double()
    torch.testing.assert_close(lambdas, slopes.square(), rtol=1e-3, atol=1e-5)
    mean = rows.mean(0)
    assert metrics[f"{start}/gradient_norm"] == pytest.approx(float(mean.norm()), rel=1e-4)
    known = {key for key in metrics if key.startswith("empirical_fisher")}
    assert not any("sharpness_lr" in key or "newton_step" in key for key in known)
    assert ("empirical_fisher/effective_rank" in known) == (method == "auto")
    tags = events.Tags()
    assert known <= set(tags["scalars"])
    assert {f"{start}/gamma_1", f"{start}/lambda_1"} <= set(tags["histograms"])
    assert {"empirical_fisher/spectrum", f"{start}/samples"} <= set(tags["images"])
    header = Path(folder, "metrics.csv").read_text().splitlines()[0].split(",")
    assert known <= set(header)
    _, alone, _, _ = fit(tmp_path, name="alone")
    for one, two in zip(trained.parameters(), alone.parameters(), strict=True):
        assert torch.equal(one, two)


def test_groups_and_microbatches(tmp_path):
    options = {"k": 1, "every_n_steps": 1, "matrix": "empirical_fisher", "on_error": "raise"}
    gradients = Gradients()
    metrics, module, _, _ = fit(
        tmp_path,
        GGNSpectrumMonitor(param_groups="layer", **options),
        GGNSpectrumMonitor(
            prefix="parts/", method="matrix_free", microbatch=3, tol=1e-6, **options
        ),
        gradients,
    )
    rows = gradients.rows
    first = sum(p.numel() for p in module.net[0].parameters())
    for group, part in (("net.0", rows[:, :first]), ("net.2", rows[:, first:])):
        value = float(torch.linalg.matrix_norm(part, 2).square() / len(rows))
        assert metrics[f"empirical_fisher/{group}/eigenvalue_1"] == pytest.approx(value, rel=1e-4)
    value = float(torch.linalg.matrix_norm(rows, 2).square() / len(rows))
    assert metrics["parts/empirical_fisher/eigenvalue_1"] == pytest.approx(value, rel=1e-4)


def test_impossible_options():
    with pytest.raises(OptionError, match="Monte-Carlo columns estimate the GGN"):
        GGNSpectrumMonitor(matrix="empirical_fisher", mc_samples=1)
    with pytest.raises(OptionError, match="eigenvectors of the Hessian are not supported"):
        DirectionalDerivativesMonitor(matrix="hessian")
    with pytest.raises(OptionError, match="matrix has to be one of"):
        DirectionalDerivativesMonitor(matrix="fisher")
