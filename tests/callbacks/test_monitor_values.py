"""The logged numbers are those of the public functions at the parameters before the step."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from monitor_toys import Classifier, Delicate, RecordingLogger, loader, trainer
from torch import Tensor, nn

from lightning_vivit.callbacks import (
    DirectionalDerivativesMonitor,
    GGNSpectrumMonitor,
    Monitor,
    NTKMonitor,
)
from lightning_vivit.callbacks.learning_rate import heavy_ball
from lightning_vivit.errors import OptionError
from lightning_vivit.evaluation.evaluate import evaluate
from lightning_vivit.evaluation.exact import Evaluation
from lightning_vivit.functions import empirical_ntk
from lightning_vivit.metrics.functional import (
    kernel_alignment,
    kernel_distance,
    stability_limit,
    subspace_overlap,
)
from lightning_vivit.problem.problem import Problem


class Snapshots(pl.Callback):
    """Evaluates copies of the module on the training batches, one for each step."""

    def __init__(self) -> None:
        self.found: list[Evaluation] = []

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        net = copy.deepcopy(pl_module.net).eval()
        self.found.append(evaluate(Problem(net, nn.CrossEntropyLoss(), batch[0], batch[1])))


def fit(
    tmp_path: Path,
    *callbacks: pl.Callback,
    module: pl.LightningModule | None = None,
    **options: Any,
) -> RecordingLogger:
    log = RecordingLogger()
    pl.seed_everything(0)
    run = trainer(tmp_path, *callbacks, logger=log, **options)
    run.fit(Classifier() if module is None else module, loader(shuffle=False))
    return log


def strict(kind: type[Monitor], **options: Any) -> Monitor:
    return kind(**{"k": 3, "every_n_steps": 2, "data": "batch", "on_error": "raise", **options})


def test_spectrum_is_that_of_the_batch_before_the_step(tmp_path: Path) -> None:
    truth = Snapshots()
    log = fit(tmp_path, truth, strict(GGNSpectrumMonitor))
    for step in (0, 2, 4):
        values = truth.found[step].eigenvalues()
        for i in (1, 2, 3):
            logged = log.values(f"ggn/eigenvalue_{i}")[step]
            assert logged == pytest.approx(float(values[-i]), rel=1e-5)
        assert log.values("ggn/trace")[step] == pytest.approx(float(values.sum()), rel=1e-5)
        ratio = float(values[-1]) * 0.1 / 2
        assert log.values("ggn/sharpness_lr")[step] == pytest.approx(ratio, rel=1e-5)
    for step in (2, 4):  # each with the one before
        overlap = subspace_overlap(
            _bare(truth.found[step - 2].eigenvectors(k=3)),
            _bare(truth.found[step].eigenvectors(k=3)),
        )
        assert log.values("ggn/subspace_overlap")[step] == pytest.approx(float(overlap), rel=1e-4)


def _bare(vectors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: part.detach() for name, part in vectors.items()}


def test_directions_are_ordered_and_point_uphill(tmp_path: Path) -> None:
    truth = Snapshots()
    log = fit(tmp_path, truth, strict(DirectionalDerivativesMonitor, damping=0.5))
    for step in (0, 2, 4):
        found = truth.found[step].directions(k=3)
        slopes, curvatures = found.slopes().flip(0), found.curvatures().flip(0)
        share = float(slopes.square().sum() / truth.found[step].gradient_norm_squared())
        assert log.values("directions/gradient_share")[step] == pytest.approx(share, rel=1e-4)
        for i in (1, 2, 3):
            slope, curvature = abs(float(slopes[i - 1])), float(curvatures[i - 1])
            expected = {
                f"gamma_mean_{i}": slope,
                f"lambda_mean_{i}": curvature,
                f"newton_step_{i}": -slope / (curvature + 0.5),
            }
            for name, value in expected.items():
                logged = log.values(f"directions/{name}")[step]
                assert logged == pytest.approx(value, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("mode", ["full", "trace"])
def test_kernel_statistics(tmp_path: Path, mode: str) -> None:
    truth = Snapshots()
    probe = next(iter(loader(shuffle=False)))
    log = fit(tmp_path, truth, strict(NTKMonitor, mode=mode, probe=probe))
    kernel = truth.found[0].ntk(mode=mode)
    assert log.values("ntk/alignment")[0] == pytest.approx(
        float(kernel_alignment(kernel, probe[1])), rel=1e-4
    )
    trace = float(truth.found[0].ntk(mode="trace").trace())
    assert log.values("ntk/trace")[0] == pytest.approx(trace, rel=1e-5)
    assert log.values("ntk/distance_first")[4] > log.values("ntk/distance_first")[2] > 0


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "pseudo"},
        {"mode": "full", "outputs": [2, 0]},
        {"mode": "trace", "outputs": [1]},
        {"mode": "projected", "projections": 4, "seed": 7},
    ],
)
def test_kernel_of_many_outputs(tmp_path: Path, options: dict[str, Any]) -> None:
    probe = next(iter(loader(shuffle=False)))
    estimates: list[Any] = []

    class Kernels(pl.Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, *_: Any) -> None:
            net = copy.deepcopy(module.net).eval()
            estimates.append(empirical_ntk(net, probe[0], **options))

    log = fit(
        tmp_path,
        Kernels(),
        strict(NTKMonitor, probe=probe, **options),
        strict(GGNSpectrumMonitor, probe=probe),
    )
    for step in (0, 2, 4):
        found = estimates[step]
        kernel = found.kernel if options["mode"] == "projected" else found
        flat = kernel.permute(0, 2, 1, 3).flatten(2).flatten(0, 1) if kernel.ndim == 4 else kernel
        assert log.values("ntk/trace")[step] == pytest.approx(float(flat.trace()), rel=1e-4)
        top = torch.linalg.eigvalsh(flat.double())[-1]
        assert log.values("ntk/eigenvalue_1")[step] == pytest.approx(float(top), rel=1e-4)
        assert log.values("ntk/alignment")[step] == pytest.approx(
            float(kernel_alignment(kernel, probe[1])), rel=1e-3
        )
        if options["mode"] == "projected":
            error = float(found.standard_error.norm() / kernel.norm())
            assert log.values("ntk/relative_error")[step] == pytest.approx(error, rel=1e-3)
    assert log.values("ntk/distance_first")[4] > log.values("ntk/distance_first")[2] > 0
    assert ("ntk/relative_error" in log.seen()) == (options["mode"] == "projected")


def test_kernels_with_other_outputs_have_states_of_their_own() -> None:
    monitors = [
        NTKMonitor(),
        NTKMonitor(mode="pseudo"),
        NTKMonitor(mode="projected"),
        NTKMonitor(mode="projected", projections=3),
        NTKMonitor(outputs=[0]),
    ]
    assert len({monitor.state_key for monitor in monitors}) == len(monitors)
    assert [monitor.needs_kernel for monitor in monitors] == [True, False, False, False, False]
    with pytest.raises(OptionError, match="projections=1"):
        NTKMonitor(mode="projected", projections=1)


def test_drift_is_that_of_the_probe(tmp_path: Path) -> None:
    kernels: dict[int, Tensor] = {}
    probe = next(iter(loader(shuffle=False)))

    class Kernels(pl.Callback):
        def on_train_batch_start(
            self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int
        ) -> None:
            problem = Problem(copy.deepcopy(pl_module.net), None, probe[0])
            kernels[batch_idx] = evaluate(problem).ntk()

    log = fit(tmp_path, Kernels(), strict(NTKMonitor, probe=probe))
    for name, reference in (("first", 0), ("previous", 2)):
        expected = float(kernel_distance(kernels[4], kernels[reference]))
        assert log.values(f"ntk/distance_{name}")[4] == pytest.approx(expected, rel=1e-3)


def test_no_drift_between_different_batches(tmp_path: Path) -> None:
    log = fit(tmp_path, strict(NTKMonitor))
    assert not {key for key in log.seen() if "distance" in key}


def test_monitors_see_the_module_in_eval_mode(tmp_path: Path) -> None:
    class Replayed(Delicate):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return Classifier.training_step(self, batch, batch_idx)

    truth = Snapshots()
    log = fit(tmp_path, truth, strict(GGNSpectrumMonitor), module=Replayed())
    expected = float(truth.found[4].eigenvalues()[-1])
    assert log.values("ggn/eigenvalue_1")[4] == pytest.approx(expected, rel=1e-5)


def test_explicit_problem_is_evaluated_in_eval_mode(tmp_path: Path) -> None:
    def problem(module: Any, batch: Any) -> Problem:
        return Problem(module.net, nn.CrossEntropyLoss(), batch[0], batch[1])

    truth = Snapshots()
    log = fit(tmp_path, truth, strict(GGNSpectrumMonitor, problem=problem), module=Delicate())
    expected = float(truth.found[4].eigenvalues()[-1])
    assert log.values("ggn/eigenvalue_1")[4] == pytest.approx(expected, rel=1e-5)


def test_groups_are_blocks(tmp_path: Path) -> None:
    log = fit(
        tmp_path,
        strict(NTKMonitor, param_groups="parameter", prefix="each/"),
        strict(NTKMonitor),
    )
    parts = ["net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias"]
    total = sum(log.values(f"each/ntk/{part}/trace")[2] for part in parts)
    assert log.values("ntk/trace")[2] == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dtype_of_the_linear_algebra(tmp_path: Path, dtype: str) -> None:
    log = fit(
        tmp_path, strict(GGNSpectrumMonitor, dtype=dtype), strict(GGNSpectrumMonitor, prefix="_")
    )
    for step, value in log.values("ggn/eigenvalue_1").items():
        assert value == pytest.approx(log.values("_ggn/eigenvalue_1")[step], rel=1e-4)


def test_monte_carlo_estimates_the_trace(tmp_path: Path) -> None:
    log = fit(
        tmp_path,
        strict(GGNSpectrumMonitor),
        strict(GGNSpectrumMonitor, mc_samples=60, prefix="mc/"),
        strict(DirectionalDerivativesMonitor, mc_samples=60),
    )
    for step, value in log.values("ggn/trace").items():
        assert log.values("mc/ggn/trace")[step] == pytest.approx(value, rel=0.3)
    assert list(log.values("directions/gradient_share")) == [0, 2, 4]


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        (torch.optim.SGD, {}),
        (torch.optim.SGD, {"momentum": 0.9}),
        (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
        (torch.optim.SGD, {"momentum": 0.8, "dampening": 0.5}),
    ],
)
def test_limit_of_the_learning_rate_is_where_a_quadratic_diverges(
    optimizer: Any, options: dict[str, Any]
) -> None:
    """Just below the limit the iterates stay small, just above they explode."""
    sharpness = 3.0
    rate, momentum = heavy_ball({"lr": 1.0, **options})
    critical = float(stability_limit(momentum)) / (sharpness * rate)
    sizes = []
    for factor in (0.97, 1.03):
        point = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
        steps = optimizer([point], lr=factor * critical, **options)
        for _ in range(1000):
            steps.zero_grad()
            (0.5 * sharpness * point.square()).sum().backward()
            steps.step()
        sizes.append(float(point.detach().abs()))
    assert sizes[0] < 1e-3
    assert sizes[1] > 1e3


def test_sharpest_learning_rate_of_the_groups_parameters_counts(tmp_path: Path) -> None:
    class TwoRates(Classifier):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            first = {"params": self.net[0].parameters(), "lr": 0.2, "momentum": 0.5}
            return torch.optim.SGD([first, {"params": self.net[2].parameters(), "lr": 0.1}], lr=0.0)

    log = fit(tmp_path, strict(GGNSpectrumMonitor, param_groups="layer"), module=TwoRates())
    for layer, limit in (("net.0", 0.2 / 3), ("net.2", 0.1 / 2)):
        sharpness = log.values(f"ggn/{layer}/eigenvalue_1")[2]
        ratio = log.values(f"ggn/{layer}/sharpness_lr")[2]
        assert ratio == pytest.approx(sharpness * limit, rel=1e-5)


def test_undetermined_directions_are_left_out(tmp_path: Path) -> None:
    """Cross-entropy of 3 classes has a Hessian of rank 2: 16 of 24 eigenvalues are positive."""
    log = fit(
        tmp_path, strict(DirectionalDerivativesMonitor, k=24), strict(GGNSpectrumMonitor, k=24)
    )
    assert "directions/gamma_mean_10" in log.seen()
    assert "directions/gamma_mean_17" not in log.seen()
    assert "ggn/eigenvalue_24" in log.seen()
    assert 0 <= log.values("ggn/subspace_overlap")[2] <= 1
