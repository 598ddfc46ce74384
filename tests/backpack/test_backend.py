"""The guarded BackPACK backend: right results, clear refusals, nothing left behind."""

from __future__ import annotations

import copy
import gc
import pickle
import re
from pathlib import Path

import lightning.pytorch as L
import pytest
import torch
import torch.nn.functional as F
from backpack import backpack, extend
from backpack.extensions import BatchGrad
from backpack_layers import NETWORKS, C, N, build
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_vivit import (
    DirectionalDerivativesMonitor,
    GGNSpectrumMonitor,
    NTKMonitor,
    OptionError,
    Problem,
    ProblemError,
    directional_derivatives,
    empirical_ntk,
    evaluate,
    ggn_eigenvalues,
    newton_step,
)
from lightning_vivit.demo import DigitsClassifier, DigitsDataModule

TARGETS = torch.tensor([0, 1, 2, 0])


def traces_of_backpack(module: nn.Module) -> list[str]:
    """Hooks, flags, saved activations and savefields on a module and its parameters."""
    found = []
    for name, child in module.named_modules():
        fields = [f for f in vars(child) if re.fullmatch(r"input\d+|output|_backpack_.*", f)]
        hooks = [*child._forward_hooks, *child._forward_pre_hooks, *child._backward_hooks]
        found += [f"{name}.{field}" for field in fields] + [f"{name}: hook" for _ in hooks]
    for name, parameter in module.named_parameters():
        found += [f"{name}.{field}" for field in vars(parameter)]
    return found


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), nn.CrossEntropyLoss(label_smoothing=0.1)])
@pytest.mark.parametrize("name", NETWORKS)
def test_equals_the_autograd_backend(name: str, loss: nn.Module) -> None:
    model, inputs = build(name)
    tolerance = 1e-9
    if name == "avg_pool":  # BackPACK 1.7.1 propagates through it in float32 only
        model, inputs, tolerance = model.float(), inputs.float(), 1e-5
    problem = Problem(model, loss, inputs, TARGETS)
    ours, theirs = evaluate(problem), evaluate(problem, backend="backpack")
    scale = float(ours.eigenvalues()[-1])
    assert float((ours.eigenvalues() - theirs.eigenvalues()).abs().max()) < tolerance * scale
    kernel = ours.ntk()
    assert float((kernel - theirs.ntk()).abs().max()) < tolerance * float(kernel.abs().max())
    first, second = ours.directions(k=1), theirs.directions(k=1)
    torch.testing.assert_close(first.lambdas, second.lambdas, rtol=100 * tolerance, atol=1e-7)
    step, other = ours.newton_step(k=1, damping=0.1), theirs.newton_step(k=1, damping=0.1)
    for key in step:
        torch.testing.assert_close(step[key], other[key], rtol=1e-4, atol=1e-7)
    assert traces_of_backpack(model) == []
    assert all(parameter.grad is None for parameter in model.parameters())


def shared_parameter() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, C))
    model[2].weight = model[0].weight
    return model


def on_images(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Unflatten(1, (1, 2, 2)), *layers, nn.Flatten(), nn.LazyLinear(C))


class Functional(nn.Module):
    """Two square layers with a function between."""

    def __init__(self, between) -> None:
        super().__init__()
        self.a, self.b, self.between = nn.Linear(4, 4), nn.Linear(4, C), between

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.between(self.a(x)))


class Residual(Functional):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.b(y + self.between(y))


class Twice(Functional):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(self.between(self.a(x))))


def square_transpose(y: Tensor) -> Tensor:
    return y.transpose(0, 1) if y.shape[0] == y.shape[1] else y


class Hidden(nn.Module):
    """The transpose of a square activation, which keeps its address."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.act, self.b, self.c = (
            nn.Linear(4, 4),
            nn.Tanh(),
            nn.Linear(4, 4),
            nn.Linear(16, C),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.a(x)).transpose(1, 2)
        return self.c(self.b(y).flatten(1))


REFUSED = {
    "functional activation": (lambda: Functional(F.relu), "relu"),
    "tensor method": (lambda: Functional(torch.tanh), "tanh"),
    "residual sum": (lambda: Residual(nn.Tanh()), "add"),
    "reused layer": (lambda: Twice(nn.Tanh()), "'a'"),
    "LayerNorm": (lambda: nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, C)), "'1'"),
    "GELU": (lambda: nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, C)), "'1' is a GELU"),
    "in place": (
        lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, C)),
        "in place",
    ),
    "adaptive pooling": (
        lambda: nn.Sequential(
            nn.Unflatten(1, (1, 2, 2)),
            nn.Conv2d(1, 2, 1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(2, C),
        ),
        "AdaptiveAvgPool2d",
    ),
    "circular padding": (
        lambda: nn.Sequential(
            nn.Unflatten(1, (1, 2, 2)),
            nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"),
            nn.Flatten(),
            nn.Linear(8, C),
        ),
        "circular",
    ),
    "shared parameter": (shared_parameter, "'0' and '2' share a parameter"),
    "padding in words": (
        lambda: on_images(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 3, padding="same")),
        "'2' pads with 'same'",
    ),
    "average over a part": (
        lambda: on_images(nn.Conv2d(1, 2, 1), nn.AvgPool2d(2, divisor_override=3)),
        "'2' averages with",
    ),
    "average in another dtype": (
        lambda: on_images(nn.Conv2d(1, 2, 1), nn.AvgPool2d(2)).double(),
        "'2' averages in torch.float64",
    ),
    "normalisation without parameters": (
        lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False), nn.Linear(4, C)),
        "'1' is a normalisation",
    ),
    "already extended": (
        lambda: extend(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, C))),
        "extended already",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_inspection(name: str) -> None:
    make, words = REFUSED[name]
    model = make().eval()
    x = torch.randn(N, 4, dtype=torch.float64 if "dtype" in name else None)
    if name != "already extended":
        model(x)  # lazy layers
    before = traces_of_backpack(model)
    problem = Problem(model, nn.CrossEntropyLoss(), x, TARGETS)
    with pytest.raises(ProblemError, match=words) as caught:
        evaluate(problem, backend="backpack")
    assert "backend='autograd'" in str(caught.value)
    assert traces_of_backpack(model) == before
    if name != "already extended":
        evaluate(problem, backend="autograd")


def test_square_transpose_is_refused() -> None:
    model, x = Hidden().double(), torch.randn(N, 4, 4).double()
    problem = Problem(model, nn.CrossEntropyLoss(), x, TARGETS)
    with pytest.raises(ProblemError, match="transpose"):
        evaluate(problem, backend="backpack")


def test_a_wrong_jacobian_is_found_by_the_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the inspection, the check against autograd refuses the silently wrong result."""
    from lightning_vivit.backpack import guard

    monkeypatch.setattr(guard.Guard, "check", lambda self: None)
    model, x = Hidden().double(), torch.randn(N, 4, 4).double()
    with pytest.raises(ProblemError, match=r"not autograd's|BackPACK failed"):
        evaluate(Problem(model, nn.CrossEntropyLoss(), x, TARGETS), backend="backpack")
    assert traces_of_backpack(model) == []


def test_outputs_with_positions_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, C))
    problem = Problem(model, nn.MSELoss(), torch.randn(N, 2, 4), torch.randn(N, 2, C))
    with pytest.raises(ProblemError, match=r"\[N, C\]"):
        evaluate(problem, backend="backpack")


def test_batch_norm_in_training_mode_is_refused() -> None:
    model, x = build("batch_norm_1d")
    problem = Problem(model.train(), nn.CrossEntropyLoss(), x, TARGETS)
    with pytest.raises(ProblemError, match=r"'1'|training"):
        evaluate(problem, backend="backpack")


def test_losses_that_backpack_cannot_do_work() -> None:
    """Only the Jacobian comes from BackPACK, so every loss of the package is fine."""
    model, x = build("tanh")
    weight = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    losses = [
        (nn.CrossEntropyLoss(weight=weight, ignore_index=2), TARGETS),
        (nn.BCEWithLogitsLoss(), torch.rand(N, C).double()),
        (nn.SmoothL1Loss(beta=5.0), torch.randn(N, C).double()),
    ]
    for loss, targets in losses:
        problem = Problem(model, loss, x, targets)
        first, second = evaluate(problem), evaluate(problem, backend="backpack")
        torch.testing.assert_close(first.eigenvalues(), second.eigenvalues(), rtol=1e-9, atol=1e-12)


def test_users_own_extended_modules_are_left_alone() -> None:
    other = extend(nn.Linear(3, 2))
    model, x = build("relu")
    evaluate(Problem(model, nn.CrossEntropyLoss(), x, TARGETS), backend="backpack")
    loss = extend(nn.MSELoss())
    with backpack(BatchGrad()):
        loss(other(torch.randn(5, 3)), torch.randn(5, 2)).backward()
    assert other.weight.grad_batch.shape == (5, 2, 3)


def test_module_is_as_before() -> None:
    model, x = build("conv2d")
    model[0].weight.grad = torch.ones_like(model[0].weight)
    evaluate(Problem(model, nn.CrossEntropyLoss(), x, TARGETS), backend="backpack")
    assert bool((model[0].weight.grad == 1).all())
    pickle.loads(pickle.dumps(model))
    copy.deepcopy(model)
    torch.func.vmap(model)(x.unsqueeze(1))


def test_monte_carlo_and_unknown_backends_are_refused() -> None:
    model, x = build("relu")
    problem = Problem(model, nn.CrossEntropyLoss(), x, TARGETS)
    with pytest.raises(OptionError, match="exact columns"):
        evaluate(problem, backend="backpack", columns="mc")
    with pytest.raises(OptionError, match="backend has to be one of"):
        evaluate(problem, backend="tensorflow")


def train(tmp_path: Path, name: str, *callbacks: L.Callback) -> DigitsClassifier:
    L.seed_everything(0)
    module = DigitsClassifier(width=4)
    trainer = L.Trainer(
        max_steps=12,
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=L.loggers.TensorBoardLogger(tmp_path, name=name, version=""),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DigitsDataModule())
    return module


def monitors(backend: str) -> list[L.Callback]:
    options = {"every_n_steps": 4, "data": "train", "max_samples": 16, "backend": backend}
    return [
        GGNSpectrumMonitor(k=3, on_error="raise", **options),
        DirectionalDerivativesMonitor(k=2, gradients=True, on_error="raise", **options),
        NTKMonitor(k=2, on_error="raise", **options),
    ]


def test_training_is_bit_identical_and_clean_and_equals_autograd(tmp_path: Path) -> None:
    plain = train(tmp_path, "plain")
    watched = train(tmp_path, "backpack", *monitors("backpack"))
    train(tmp_path, "autograd", *monitors("autograd"))
    for first, second in zip(
        plain.state_dict().values(), watched.state_dict().values(), strict=True
    ):
        assert torch.equal(first, second)
    assert traces_of_backpack(watched) == traces_of_backpack(plain)
    theirs = EventAccumulator(str(tmp_path / "backpack")).Reload()
    ours = EventAccumulator(str(tmp_path / "autograd")).Reload()
    keys = [tag for tag in ours.Tags()["scalars"] if tag.startswith("ggn/eigenvalue")]
    assert len(keys) == 3
    for key in keys:
        left = [event.value for event in ours.Scalars(key)]
        right = [event.value for event in theirs.Scalars(key)]
        assert right == pytest.approx(left, rel=1e-4)
    for key in ("gradient_norm", "sample_gradient_norm", "gradient_variance"):
        assert len(ours.Scalars(f"directions/{key}")) == 3


def test_nothing_is_left_after_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = build("relu")

    def broken(*arguments: object) -> None:
        raise RuntimeError("in the middle")

    monkeypatch.setattr("lightning_vivit.backpack.vivit.layer_factor", broken)
    with pytest.raises(ProblemError, match="in the middle"):
        evaluate(Problem(model, nn.CrossEntropyLoss(), x, TARGETS), backend="backpack")
    assert traces_of_backpack(model) == []
    monkeypatch.undo()
    evaluate(Problem(model, nn.CrossEntropyLoss(), x, TARGETS), backend="backpack")


def living_convolutions() -> int:
    gc.collect()
    return sum(isinstance(thing, nn.Conv2d) for thing in gc.get_objects())


@pytest.mark.parametrize("fails", [False, True])
def test_copies_and_their_activations_are_freed(
    fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = build("conv2d")
    problem = Problem(model, nn.CrossEntropyLoss(), x, TARGETS)
    before = living_convolutions()
    if fails:
        monkeypatch.setattr("lightning_vivit.backpack.vivit.layer_factor", None)
    for _ in range(3):
        if fails:
            with pytest.raises(ProblemError, match="BackPACK failed"):
                evaluate(problem, backend="backpack")
        else:
            evaluate(problem, backend="backpack").directions(k=2)
    assert living_convolutions() == before


def test_gradient_norms_and_variance() -> None:
    model, x = build("tanh")
    loss = nn.CrossEntropyLoss()
    result = evaluate(Problem(model, loss, x, TARGETS))
    grads = []
    for n in range(N):
        value = loss(model(x[n : n + 1]), TARGETS[n : n + 1])
        parts = torch.autograd.grad(value, list(model.parameters()))
        grads.append(torch.cat([part.flatten() for part in parts]))
    rows = torch.stack(grads)
    torch.testing.assert_close(result.gradient_norms(), rows.norm(dim=1))
    variance = (rows - rows.mean(0)).square().sum(1).mean()
    torch.testing.assert_close(result.gradient_variance(), variance)


def test_functions_take_the_backend() -> None:
    model, x = build("conv2d")
    one, two = x[:3], x[3:]
    for mode in ("full", "trace", "diagonal"):
        ours = empirical_ntk(model, one, two, mode)
        theirs = empirical_ntk(model, one, two, mode, backend="backpack")
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    arguments = (model, nn.CrossEntropyLoss(), x, TARGETS)
    torch.testing.assert_close(
        ggn_eigenvalues(*arguments), ggn_eigenvalues(*arguments, backend="backpack")
    )
    ours, theirs = (
        directional_derivatives(*arguments, k=2, backend=backend)
        for backend in ("autograd", "backpack")
    )
    torch.testing.assert_close(ours.lambdas, theirs.lambdas, rtol=1e-7, atol=1e-10)
    ours, theirs = (
        newton_step(*arguments, k=2, damping=0.1, backend=backend)
        for backend in ("autograd", "backpack")
    )
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-7, atol=1e-10)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, C)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x, x, x)[0][:, 0])


def test_attention_is_refused() -> None:
    problem = Problem(Attention(), nn.CrossEntropyLoss(), torch.randn(N, 3, 4), TARGETS)
    with pytest.raises(ProblemError, match="attention"):
        evaluate(problem, backend="backpack")


class Step(L.LightningModule):
    """A training step in which BackPACK alone would see another loss scale or another dtype."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return 65536 * F.cross_entropy(self(x), y) / 4


def test_the_scale_of_the_loss_is_that_of_the_step() -> None:
    model, x = build("conv2d")
    problem = Problem.from_training_step(Step(model), [x, TARGETS])
    first, second = evaluate(problem), evaluate(problem, backend="backpack")
    torch.testing.assert_close(first.eigenvalues(), second.eigenvalues(), rtol=1e-9, atol=1e-6)
    ours, theirs = first.directions(k=1), second.directions(k=1)
    torch.testing.assert_close(ours.gammas.abs(), theirs.gammas.abs(), rtol=1e-7, atol=1e-6)


def test_under_autocast() -> None:
    model, x = build("conv2d")
    model, x = model.float(), x.float()
    problem = Problem(model, nn.CrossEntropyLoss(), x, TARGETS)
    expected = evaluate(problem).eigenvalues()
    with torch.autocast("cpu", torch.bfloat16):
        found = evaluate(problem, backend="backpack").eigenvalues()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_compiled_and_checkpointed_models() -> None:
    model, x = build("relu")
    expected = evaluate(Problem(model, nn.CrossEntropyLoss(), x, TARGETS)).eigenvalues()
    compiled = torch.compile(model, backend="eager")
    problem = Problem(compiled, nn.CrossEntropyLoss(), x, TARGETS)
    torch.testing.assert_close(evaluate(problem).eigenvalues(), expected)
    torch.testing.assert_close(evaluate(problem, backend="backpack").eigenvalues(), expected)

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.inner, x, use_reentrant=False)

    problem = Problem(Checkpointed(), nn.CrossEntropyLoss(), x, TARGETS)
    torch.testing.assert_close(evaluate(problem).eigenvalues(), expected)
    # the recomputation runs BackPACK's forward hooks again, over what they had kept
    with pytest.raises(ProblemError, match=r"BackPACK failed(.|\n)*backend='autograd'"):
        evaluate(problem, backend="backpack")
    assert traces_of_backpack(model) == []


def test_a_failing_pass_leaves_the_training_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = train(tmp_path, "plain")

    def broken(*arguments: object) -> None:
        raise RuntimeError("in the middle")

    monkeypatch.setattr("lightning_vivit.backpack.vivit.layer_factor", broken)
    with pytest.warns(RuntimeWarning, match="in the middle"):
        watched = train(
            tmp_path, "broken", GGNSpectrumMonitor(k=3, data="train", backend="backpack")
        )
    for first, second in zip(
        plain.state_dict().values(), watched.state_dict().values(), strict=True
    ):
        assert torch.equal(first, second)
    assert traces_of_backpack(watched) == traces_of_backpack(plain)


def test_auto_says_its_choice_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_vivit.evaluation.backends._SAID", set())
    model, x = build("relu")
    with caplog.at_level("INFO", logger="lightning_vivit"):
        for _ in range(3):
            evaluate(Problem(model, nn.CrossEntropyLoss(), x, TARGETS), backend="auto")
    assert sum("backend='auto'" in record.getMessage() for record in caplog.records) == 1
