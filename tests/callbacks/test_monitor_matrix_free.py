"""Monitors without a Gram matrix, in real training runs."""

from __future__ import annotations

import logging

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from monitor_toys import Classifier, loader
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.checkpoint import checkpoint

from lightning_vivit import (
    DirectionalDerivativesMonitor,
    Evaluation,
    GGNSpectrumMonitor,
    MatrixFreeEvaluation,
    OptionError,
    Problem,
    evaluate,
)
from lightning_vivit.evaluation import choice
from lightning_vivit.evaluation.request import Request


def fit(tmp_path, *monitors, steps=6, module=Classifier, name="run"):
    pl.seed_everything(0)
    logger = CSVLogger(tmp_path, name=name)
    trainer = pl.Trainer(
        max_steps=steps,
        logger=logger,
        callbacks=list(monitors),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    module = module()
    trainer.fit(module, loader(shuffle=True))
    return {key: float(value) for key, value in trainer.callback_metrics.items()}, module


def test_both_methods_log_the_same_values(tmp_path):
    def monitors(method):
        options = {"k": 2, "every_n_steps": 2, "tol": 1e-6, "on_error": "raise", "method": method}
        return GGNSpectrumMonitor(**options), DirectionalDerivativesMonitor(
            gradients=True, **options
        )

    free, trained = fit(tmp_path, *monitors("matrix_free"))
    exact, alike = fit(tmp_path, *monitors("gram"))
    plain, untouched = fit(tmp_path)
    for one, two, three in zip(
        trained.parameters(), alike.parameters(), untouched.parameters(), strict=True
    ):
        assert torch.equal(one, two) and torch.equal(one, three)
    assert plain["train_loss"] == free["train_loss"]
    assert free.keys() - exact.keys() == {"ggn/trace_error", "ggn/products"}
    assert exact.keys() - free.keys() == {"ggn/effective_rank"}
    for key in free.keys() & exact.keys() - {"ggn/trace", "cost/seconds", "cost/overhead"}:
        assert free[key] == pytest.approx(exact[key], rel=2e-3), key
    assert free["ggn/trace"] == pytest.approx(
        exact["ggn/trace"], abs=1e-5 + 6 * free["ggn/trace_error"]
    )


def test_monitors_share_the_search_and_start_from_the_last_one(tmp_path, monkeypatch):
    seen = []
    original = MatrixFreeEvaluation.__init__

    def spy(self, problem, groups, request):
        seen.append((request.k, request.start is not None))
        original(self, problem, groups, request)

    monkeypatch.setattr(MatrixFreeEvaluation, "__init__", spy)
    options = {"every_n_steps": 2, "method": "matrix_free", "on_error": "raise"}
    fit(
        tmp_path,
        DirectionalDerivativesMonitor(k=1, **options),
        GGNSpectrumMonitor(k=3, **options),
    )
    assert seen == [(3, False), (3, True), (3, True)]


def test_hessian_of_the_loss(tmp_path):
    monitor = GGNSpectrumMonitor(
        k=2, steps=[3], matrix="hessian", tol=1e-6, on_error="raise", data="train", max_samples=16
    )
    found, _ = fit(tmp_path, monitor, steps=4)
    assert {"hessian/eigenvalue_1", "hessian/eigenvalue_2", "hessian/trace"} <= found.keys()
    pl.seed_everything(0)
    _, module = fit(tmp_path, steps=3, name="three")
    inputs, targets = monitor.source.probe
    parameters = dict(module.net.named_parameters())
    shapes = [p.shape for p in parameters.values()]

    def loss(flat):
        parts = flat.split([shape.numel() for shape in shapes])
        values = {
            name: part.reshape(shape)
            for name, part, shape in zip(parameters, parts, shapes, strict=True)
        }
        outputs = torch.func.functional_call(module.net, values, (inputs.double(),))
        return F.cross_entropy(outputs, targets)

    flat = torch.cat([p.detach().flatten() for p in parameters.values()]).double()
    values = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, flat))
    assert found["hessian/eigenvalue_1"] == pytest.approx(float(values[-1]), rel=1e-4)
    assert found["hessian/eigenvalue_2"] == pytest.approx(float(values[-2]), rel=1e-4)


@pytest.mark.parametrize("matrix", ["ggn", "hessian"])
def test_pictures_of_the_leading_eigenvalues(tmp_path, matrix):
    monitor = GGNSpectrumMonitor(
        k=2, every_n_steps=2, method="matrix_free", matrix=matrix, param_groups="layer"
    )
    pl.seed_everything(0)
    logger = TensorBoardLogger(tmp_path)
    options = {"enable_checkpointing": False, "enable_progress_bar": False}
    options |= {"enable_model_summary": False, "accelerator": "cpu"}
    trainer = pl.Trainer(max_steps=3, logger=logger, callbacks=[monitor], **options)
    trainer.fit(Classifier(), loader())
    events = EventAccumulator(logger.log_dir, size_guidance={"images": 0}).Reload()
    pictures = {f"{matrix}/{name}" for name in ("net.0/spectrum", "net.2/spectrum", "layers")}
    assert set(events.Tags()["images"]) == pictures


def test_microbatches_in_a_run(tmp_path):
    options = {"k": 2, "every_n_steps": 2, "tol": 1e-6, "on_error": "raise"}
    parts, _ = fit(tmp_path, GGNSpectrumMonitor(method="matrix_free", microbatch=3, **options))
    whole, _ = fit(tmp_path, GGNSpectrumMonitor(method="matrix_free", **options))
    assert parts["ggn/eigenvalue_1"] == pytest.approx(whole["ggn/eigenvalue_1"], rel=1e-5)


class Recomputed(Classifier):
    """Activation checkpointing."""

    def forward(self, inputs):
        hidden = checkpoint(self.net[:2], inputs, use_reentrant=False)
        return self.net[2](hidden)


@pytest.mark.parametrize("matrix", ["ggn", "hessian"])
def test_activation_checkpointing(tmp_path, matrix):
    options = {"k": 2, "every_n_steps": 2, "tol": 1e-6, "on_error": "raise", "matrix": matrix}
    kept, _ = fit(tmp_path, GGNSpectrumMonitor(method="matrix_free", **options))
    again, _ = fit(tmp_path, GGNSpectrumMonitor(method="matrix_free", **options), module=Recomputed)
    key = "ggn/eigenvalue_1" if matrix == "ggn" else "hessian/eigenvalue_1"
    assert again[key] == pytest.approx(kept[key], rel=1e-5) and kept[key] > 0


class Once(torch.autograd.Function):
    """Twice the input, with a backward pass that has no derivative."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return 2 * grad


class OnceDifferentiable(Classifier):
    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.5)

    def forward(self, inputs):
        return self.net[2](self.dropout(Once.apply(self.net[:2](inputs))))


@pytest.mark.parametrize("microbatch", [None, 3])
def test_a_model_that_cannot_be_differentiated_twice_trains_on(tmp_path, microbatch):
    monitor = GGNSpectrumMonitor(
        k=2, every_n_steps=1, method="matrix_free", microbatch=microbatch, data="train"
    )
    with pytest.warns(RuntimeWarning, match="of 4 parameters are seen"):
        _, seen = fit(tmp_path, monitor, module=OnceDifferentiable)
    _, alone = fit(tmp_path, module=OnceDifferentiable)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    for one, two in zip(seen.parameters(), alone.parameters(), strict=True):
        assert torch.equal(one, two)


def test_auto_says_once_what_it_takes(caplog, monkeypatch):
    monkeypatch.setattr(choice, "_SAID", set())
    small = nn.Linear(6, 3)
    large = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1000))
    inputs = torch.randn(16, 6)
    with caplog.at_level(logging.INFO, "lightning_vivit"):
        for _ in range(2):
            problem = Problem(small, nn.CrossEntropyLoss(), inputs, torch.arange(16) % 3)
            assert isinstance(evaluate(problem, method="auto", kernel=False), Evaluation)
            problem = Problem(large, nn.CrossEntropyLoss(), inputs, torch.arange(16))
            found = evaluate(problem, method="auto", kernel=False, k=2)
            assert isinstance(found, MatrixFreeEvaluation)
    texts = [r.getMessage() for r in caplog.records if "method='auto'" in r.getMessage()]
    assert len(texts) == 2 and "gram" in texts[0] and "matrix_free" in texts[1]
    problem = Problem(small, nn.CrossEntropyLoss(), inputs, torch.arange(16) % 3)
    little = evaluate(problem, method="auto", kernel=False, max_memory=1)
    assert isinstance(little, MatrixFreeEvaluation)  # no room for a Gram matrix
    room = evaluate(problem, method="auto", kernel=False)
    assert isinstance(room, Evaluation)  # what was chosen for less memory does not bind


def test_auto_is_free_to_choose_unless_the_kernel_is_asked_for():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 600))
    many = Problem(model, nn.CrossEntropyLoss(), torch.randn(4, 6), torch.arange(4))
    found = evaluate(many, method="auto", k=2)
    assert isinstance(found, MatrixFreeEvaluation)
    with pytest.raises(OptionError, match="kernel=True"):
        found.ntk()
    kept = evaluate(many, method="auto", k=2, kernel=True)
    assert isinstance(kept, Evaluation)
    torch.testing.assert_close(found.eigenvalues(), kept.eigenvalues()[-2:], rtol=1e-4, atol=0)
    model = nn.Linear(6, 3)
    few = Problem(model, nn.CrossEntropyLoss(), torch.randn(4, 6), torch.arange(4) % 3)
    both = evaluate(few, method="auto")  # the Gram matrix, and with it the kernel
    torch.testing.assert_close(both.ntk(), evaluate(few).ntk())
    with pytest.raises(OptionError, match="kernel=True"):
        evaluate(few, method="auto", kernel=False).ntk()


def test_auto_does_not_run_the_network_again_to_choose_as_before():
    runs = []
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1000))
    model.register_forward_hook(lambda *_: runs.append(1))
    labels = torch.arange(16)

    def count(inputs):
        before = len(runs)
        problem = Problem(model, nn.CrossEntropyLoss(), inputs, labels[: len(inputs)])
        evaluate(problem, method="auto", kernel=False)
        return len(runs) - before

    first = count(torch.randn(16, 6))  # to choose, of one sample alone, and to keep
    assert count(torch.randn(16, 6)) == first - 2 == 1
    assert count(torch.randn(12, 6)) == first  # another batch
    assert count(torch.randn(12, 6)) == first - 2
    model[2].weight.requires_grad_(False)  # other parameters
    assert count(torch.randn(12, 6)) == first
    kernel_only = Problem(model, None, torch.randn(12, 6))  # has no curvature to go without
    names = list(kernel_only.trainable())
    assert choice.known_choice(kernel_only, names, Request(method="auto", kernel=False)) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "exact"}, "method has to be one of"),
        ({"matrix": "fisher"}, "matrix has to be one of"),
        ({"tol": 0}, "tol has to be"),
        ({"microbatch": 0}, "microbatch has to be"),
        ({"matrix": "hessian", "method": "gram"}, "no Gram matrix"),
    ],
)
def test_impossible_options(options, message):
    with pytest.raises(OptionError, match=message):
        GGNSpectrumMonitor(**options)
