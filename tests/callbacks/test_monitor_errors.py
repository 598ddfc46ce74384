"""Wrong uses and faults: one clear message, before or at the first monitored step."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from monitor_toys import Classifier, Delicate, RecordingLogger, blobs, loader, trainer
from torch import Tensor, nn

from lightning_vivit.callbacks import (
    DirectionalDerivativesMonitor,
    GGNSpectrumMonitor,
    Monitor,
    NTKMonitor,
)
from lightning_vivit.callbacks.before_training import check_setup
from lightning_vivit.errors import OptionError, ViViTError
from lightning_vivit.problem.problem import Problem

KINDS = (GGNSpectrumMonitor, DirectionalDerivativesMonitor, NTKMonitor)


class NaNLoss(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step([batch[0] * float("nan"), batch[1]], batch_idx)


class UnknownLoss(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.smooth_l1_loss(self(batch[0]), F.one_hot(batch[1], 3).float())


class HandMadeLoss(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return (self(batch[0]) - batch[1][:, None]).abs().mean()


class TextBatch(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        lengths = torch.tensor([[float(len(text))] * 6 for text in batch])
        return F.cross_entropy(self(lengths), torch.zeros(len(batch), dtype=torch.long))


class IntegerOutputs(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        rounded = self(batch[0]).round().long()
        loss = F.mse_loss(rounded.float(), F.one_hot(batch[1], 3).float())
        return loss + 0 * self.net[0].bias.sum()


class BatchNormByHand(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        hidden = self.net[1](self.net[0](batch[0]))
        return F.cross_entropy(self.net[2](hidden - hidden.mean(0)), batch[1])


WRONG: dict[str, tuple[type[Classifier], Any, dict[str, Any], str]] = {
    "k too large": (Classifier, None, {"k": 25, "max_samples": 8}, r"k=25.* 24"),
    "empty batch": (Classifier, None, {"probe": [torch.ones(0, 6), torch.ones(0)]}, "empty"),
    "NaN loss": (NaNLoss, None, {}, "not finite"),
    "unknown loss": (UnknownLoss, None, {}, r"smooth_l1_loss.*Known losses: .*problem="),
    "no loss call": (HandMadeLoss, None, {}, r"[Nn]o loss call.*Known losses"),
    "non-tensor batch": (TextBatch, [f"text {i}" for i in range(16)], {}, "without any tensor"),
    "integer outputs": (IntegerOutputs, None, {}, r"[Nn]o loss call|dtype"),
    "wrong probe shape": (
        Classifier,
        None,
        {"probe": [torch.ones(4, 5), torch.zeros(4, dtype=torch.long)]},
        r"shape \[4, 5\], \[4\]",
    ),
    "unknown parameter group": (
        Classifier,
        None,
        {"param_groups": [["net.0.weight", "nett.2"]]},
        r"'nett.2' is none of the module's trainable parameters",
    ),
    "samples that interact": (BatchNormByHand, None, {}, r"net|sample"),
    "no validation data": (Classifier, None, {"data": "val"}, "needs a validation loader"),
}


def messages(caught: list[warnings.WarningMessage]) -> list[str]:
    return [str(w.message) for w in caught if issubclass(w.category, RuntimeWarning)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("use", WRONG)
def test_wrong_use_warns_once_and_training_goes_on(
    tmp_path: Path, use: str, kind: type[Monitor]
) -> None:
    module, data, options, message = WRONG[use]
    fit = trainer(tmp_path, kind(every_n_steps=1, **options), logger=RecordingLogger())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit.fit(module(), loader(data))
    found = messages(caught)
    assert len(found) == 1
    assert found[0].startswith(f"{kind.__name__} failed at step 0")
    assert fit.global_step > 1
    with pytest.MonkeyPatch.context() as patch:  # the message itself, without the line breaks
        patch.setattr("lightning_vivit.callbacks.failures.rank_zero_warn", None)
        strict = kind(every_n_steps=1, on_error="raise", **options)
        with pytest.raises(ViViTError, match=message):
            trainer(tmp_path, strict, logger=RecordingLogger()).fit(module(), loader(data))


def test_a_shared_fault_is_reported_once(tmp_path: Path) -> None:
    fit = trainer(tmp_path, *(kind(data="batch") for kind in KINDS), logger=RecordingLogger())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit.fit(UnknownLoss(), loader())
    assert len(messages(caught)) == 1


@pytest.mark.parametrize("data", ["batch", "train"])
def test_only_the_failing_monitor_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: str
) -> None:
    def broken(*args: Any) -> Any:
        raise MemoryError("injected")

    monkeypatch.setattr(NTKMonitor, "measure", broken)
    log = RecordingLogger()
    fit = trainer(tmp_path, *(kind(every_n_steps=2, data=data) for kind in KINDS), logger=log)
    with pytest.warns(RuntimeWarning, match=r"NTKMonitor failed at step 0 .*MemoryError: injected"):
        fit.fit(Classifier(), loader())
    assert (
        list(log.values("ggn/trace")) == list(log.values("directions/gradient_share")) == [0, 2, 4]
    )
    assert not any(key.startswith("ntk/") for key in log.seen())


def test_the_end_of_the_run_says_again_who_stopped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fit = trainer(tmp_path, *(kind(data="batch") for kind in KINDS), logger=RecordingLogger())
    with pytest.warns(RuntimeWarning, match="failed at step 0"), caplog.at_level(logging.INFO):
        fit.fit(HandMadeLoss(), loader())
    (last,) = [text for text in caplog.messages if "stopped at step" in text]
    names = ", ".join(kind.__name__ for kind in KINDS)
    assert last.startswith(f"{names} stopped at step 0. training_step of HandMadeLoss: unknown")
    assert "call torch.nn.functional.mse_loss(f, y)" in last
    caplog.clear()
    with caplog.at_level(logging.INFO):
        trainer(tmp_path, GGNSpectrumMonitor(), logger=RecordingLogger()).fit(
            Classifier(), loader()
        )
    assert not [text for text in caplog.messages if "stopped at step" in text]


def test_a_failing_logger_stops_the_monitor_only(tmp_path: Path) -> None:
    class Full(RecordingLogger):
        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            if "ggn/trace" in metrics:
                raise OSError("no space left on device")

    fit = trainer(tmp_path, GGNSpectrumMonitor(), logger=Full())
    with pytest.warns(RuntimeWarning, match="OSError: no space left on device"):
        fit.fit(Classifier(), loader())
    assert fit.global_step == 6


def test_raise_ends_the_run_and_restores_the_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("injected")

    monkeypatch.setattr("lightning_vivit.evaluation.build_exact.compute_kernels", broken)
    module = Delicate()
    monitor = GGNSpectrumMonitor(on_error="raise")
    fit = trainer(tmp_path, monitor, logger=RecordingLogger())
    modes = []
    module.on_exception = lambda error: modes.append(  # type: ignore[attr-defined]
        [child.training for child in module.modules()]
    )
    before = [child.training for child in module.modules()]
    with pytest.raises(
        ViViTError, match=r"GGNSpectrumMonitor failed at step 0 .*injected"
    ) as caught:
        fit.fit(module, loader())
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert [child.training for child in module.modules()] == before
    assert not monitor.session.results


def test_an_interrupt_passes_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(GGNSpectrumMonitor, "measure", interrupted)
    monitor = GGNSpectrumMonitor()
    fit = trainer(tmp_path, monitor, logger=RecordingLogger())
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit.fit(Classifier(), loader())
    assert not monitor.session.results


def test_unused_parameters_are_named_once(tmp_path: Path) -> None:
    class Unused(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.spare = nn.Linear(2, 2)

    log = RecordingLogger()
    fit = trainer(tmp_path, *(kind(every_n_steps=1) for kind in KINDS), logger=log)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit.fit(Unused(), loader())
    found = [str(w.message) for w in caught if "do not influence" in str(w.message)]
    assert len(found) == 1
    assert "spare.weight, spare.bias" in found[0]
    assert len(log.values("ggn/trace")) == 6


TWICE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "the very same": ({}, {}),
    "other data": ({"data": "batch"}, {"data": "train"}),
    "other k": ({"k": 2}, {"k": 3, "every_n_epochs": 1}),
    "steps that meet": ({"steps": [3, 5]}, {"steps": [5, 7]}),
    "a step that is due": ({"every_n_steps": 4}, {"steps": [8]}),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", TWICE)
def test_the_same_monitor_twice_says_prefix_before_training(
    tmp_path: Path, case: str, kind: type[Monitor]
) -> None:
    one, other = TWICE[case]
    fit = trainer(tmp_path, kind(**one), kind(**other), logger=RecordingLogger())
    with pytest.raises(OptionError, match=rf"two {kind.__name__} .*prefix='second/'"):
        fit.fit(Classifier(), loader())
    assert fit.global_step == 0


def test_what_tells_two_monitors_apart(tmp_path: Path) -> None:
    log = RecordingLogger()
    monitors = [
        GGNSpectrumMonitor(on_error="raise"),
        GGNSpectrumMonitor(on_error="raise", prefix="second/"),
        GGNSpectrumMonitor(on_error="raise", param_groups="layer"),
        GGNSpectrumMonitor(on_error="raise", steps=[1]),
        GGNSpectrumMonitor(on_error="raise", matrix="hessian", k=2),
    ]
    trainer(tmp_path, *monitors, logger=log).fit(Classifier(), loader())
    keys = {"ggn/trace", "second/ggn/trace", "ggn/net.0/trace", "hessian/trace"}
    assert keys <= log.seen()
    assert list(log.values("ggn/trace")) == [0, 1]


def test_two_monitors_that_meet_by_chance(tmp_path: Path) -> None:
    fit = trainer(
        tmp_path,
        GGNSpectrumMonitor(schedule=lambda step: step == 2),
        GGNSpectrumMonitor(every_n_steps=2),
        logger=RecordingLogger(),
    )
    words = r"Two monitors write 'ggn/.* at step 2: .*Give one of them a prefix"
    with pytest.warns(RuntimeWarning, match=words):
        fit.fit(Classifier(), loader())


def test_warnings_as_errors_leave_the_training_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fit = trainer(tmp_path, *(kind(data="batch") for kind in KINDS), logger=RecordingLogger())
    with warnings.catch_warnings(), caplog.at_level(logging.INFO):
        warnings.simplefilter("error", RuntimeWarning)
        fit.fit(UnknownLoss(), loader())
    assert fit.global_step == 6
    assert len([text for text in caplog.messages if "failed at step 0" in text]) == 1


def test_charts_that_fail_leave_the_training_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any) -> Any:
        raise ValueError("injected")

    monkeypatch.setattr(NTKMonitor, "charts", broken)
    log = RecordingLogger()
    fit = trainer(tmp_path, NTKMonitor(every_n_steps=2), logger=log)
    with pytest.warns(RuntimeWarning, match="no charts .*ValueError: injected"):
        fit.fit(Classifier(), loader())
    assert list(log.values("ntk/trace")) == [0, 2, 4]


def test_a_memory_budget_is_kept(tmp_path: Path) -> None:
    fit = trainer(
        tmp_path, GGNSpectrumMonitor(method="gram", max_memory=1000), logger=RecordingLogger()
    )
    with pytest.warns(RuntimeWarning, match=r"budget is 0 MiB.*larger max_memory"):
        fit.fit(Classifier(), loader())
    log = RecordingLogger()
    trainer(tmp_path, GGNSpectrumMonitor(max_memory=10**8), logger=log).fit(Classifier(), loader())
    assert 0 in log.values("ggn/trace")
    with pytest.raises(OptionError, match=r"max_memory has to be an integer >= 1, got 0\."):
        GGNSpectrumMonitor(max_memory=0)


def test_manual_optimization_needs_a_problem(tmp_path: Path) -> None:
    module = Classifier()
    module.automatic_optimization = False
    fit = trainer(tmp_path, GGNSpectrumMonitor(), logger=RecordingLogger())
    with pytest.raises(OptionError, match=r"uses manual optimization.*Pass problem="):
        fit.fit(module, loader())


def test_a_dataloader_iter_needs_a_problem_and_a_probe(tmp_path: Path) -> None:
    class Iterating(Classifier):
        def training_step(self, dataloader_iter: Any) -> Tensor:  # type: ignore[override]
            batch, _, _ = next(dataloader_iter)
            return F.cross_entropy(self(batch[0]), batch[1])

    def problem(module: pl.LightningModule, batch: Any) -> Problem:
        return Problem(module, nn.CrossEntropyLoss(), batch[0], batch[1])

    fit = trainer(tmp_path, GGNSpectrumMonitor(), logger=RecordingLogger())
    with pytest.raises(OptionError, match=r"dataloader_iter.*problem=.*data='train'"):
        fit.fit(Iterating(), loader())
    log = RecordingLogger()
    monitor = GGNSpectrumMonitor(data="train", problem=problem, on_error="raise", every_n_steps=2)
    trainer(tmp_path, monitor, logger=log).fit(Iterating(), loader())
    assert 0 in log.values("ggn/trace")


def test_a_module_of_another_lightning_gets_a_clear_word(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"import lightning.pytorch as pl"):
        module: Any = nn.Linear(1, 1)
        check_setup(NTKMonitor(), trainer(tmp_path), module, first=True)


def test_a_problem_without_a_loss_gives_the_kernel_only(tmp_path: Path) -> None:
    def problem(module: pl.LightningModule, batch: Any) -> Problem:
        return Problem(module, None, batch[0])

    log = RecordingLogger()
    monitors = [kind(problem=problem, data="train") for kind in KINDS]
    with pytest.warns(RuntimeWarning, match="no loss"):
        trainer(tmp_path, *monitors, logger=log).fit(Classifier(), loader())
    assert "ntk/trace" in log.seen()
    assert not any(key.startswith("ggn") for key in log.seen())


def test_a_loss_that_becomes_nan_later_stops_the_monitors_once(tmp_path: Path) -> None:
    class Diverging(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            factor = float("nan") if batch_idx >= 3 else 1.0
            return F.cross_entropy(self(batch[0]) * factor, batch[1])

    log = RecordingLogger()
    fit = trainer(tmp_path, *(kind(every_n_steps=1, data="batch") for kind in KINDS), logger=log)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit.fit(Diverging(), loader(blobs()))
    assert len(messages(caught)) == 1
    assert list(log.values("ggn/trace")) == [0, 1, 2]


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (GGNSpectrumMonitor, {"k": 0}, "k has to be an integer >= 1, got 0"),
        (GGNSpectrumMonitor, {"every_n_steps": 2, "steps": [1]}, "contradict each other"),
        (GGNSpectrumMonitor, {"on_error": "ignore"}, "on_error has to be one of 'warn', 'raise'"),
        (GGNSpectrumMonitor, {"dtype": "float16"}, "dtype has to be one of 'float32', 'float64'"),
        (GGNSpectrumMonitor, {"param_groups": "layers"}, "param_groups has to be one of 'all'"),
        (GGNSpectrumMonitor, {"mc_samples": -1}, "mc_samples has to be an integer >= 0, got -1"),
        (GGNSpectrumMonitor, {"problem": 3}, "problem has to be a callable"),
        (NTKMonitor, {"mode": "diagonal"}, "mode has to be one of 'full', 'trace'"),
        (DirectionalDerivativesMonitor, {"damping": -1.0}, "damping has to be a number >= 0"),
        (NTKMonitor, {"data": "test"}, "data has to be one of 'batch', 'train', 'val'"),
    ],
)
def test_impossible_options_are_refused_at_once(
    kind: type[Monitor], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        kind(**options)
