"""Losses of the user: seen in training_step, with Hessians from autograd or from an exact rule."""

from __future__ import annotations

import lightning.pytorch as L
import pytest
import torch
import torch.nn.functional as F
from losses import oracle
from torch import nn

from lightning_vivit import (
    GGNSpectrumMonitor,
    Problem,
    ProblemError,
    ggn_eigenvalues,
    loss_function,
    register_loss,
    unregister_loss,
)
from lightning_vivit.losses import ElementwiseLoss, LossCall
from lightning_vivit.samples.layout import SampleLayout

N, C = 5, 3


@loss_function
def log_cosh(outputs, target, sharpness=1.0, reduction="mean"):
    terms = torch.log(torch.cosh(sharpness * (outputs - target)))
    return {"mean": terms.mean, "sum": terms.sum, "none": lambda: terms}[reduction]()


def exact_log_cosh(call, layout):
    s = call.options["sharpness"]
    difference = s * (call.outputs - call.target)
    return ElementwiseLoss.of_terms(
        call,
        layout,
        torch.log(torch.cosh(difference)),
        s * torch.tanh(difference),
        s**2 / torch.cosh(difference) ** 2,
    )


def poisson(call, layout):
    rate = call.outputs.exp()
    return ElementwiseLoss.of_terms(
        call, layout, rate - call.target * call.outputs, rate - call.target, rate
    )


@pytest.fixture
def exact():
    register_loss(log_cosh)(exact_log_cosh)
    yield
    unregister_loss(log_cosh)


@pytest.fixture
def poisson_rule():
    register_loss(F.poisson_nll_loss)(poisson)
    yield
    unregister_loss(F.poisson_nll_loss)


def draw(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Module(L.LightningModule):
    def __init__(self, loss, factor=1.0):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, C)).double()
        self.loss, self.factor = loss, factor

    def training_step(self, batch, batch_idx):
        return self.loss(self.net(batch[0]), batch[1]) * self.factor

    def train_dataloader(self):
        data = torch.utils.data.TensorDataset(draw(N, 4), draw(N, C, seed=1).abs())
        return torch.utils.data.DataLoader(data, N)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def eigenvalues_by_autograd(module, plain_loss):
    """The GGN as the Hessian of the loss of the linearised network, without our code."""
    inputs, target = draw(N, 4), draw(N, C, seed=1).abs()
    parameters = {name: p.detach() for name, p in module.net.named_parameters()}
    flat = torch.cat([p.flatten() for p in parameters.values()])

    def outputs(vector):
        parts = vector.split([p.numel() for p in parameters.values()])
        named = {n: part.view_as(parameters[n]) for n, part in zip(parameters, parts, strict=True)}
        return torch.func.functional_call(module.net, named, (inputs,))

    jacobian = torch.autograd.functional.jacobian(outputs, flat).reshape(N * C, -1)
    hessian = torch.autograd.functional.hessian(
        lambda f: plain_loss(f.view(N, C), target), outputs(flat).flatten()
    )
    return torch.linalg.eigvalsh(jacobian.T @ hessian @ jacobian)[-N * C :]


@pytest.mark.parametrize("factor", [1.0, 0.3])
@pytest.mark.parametrize("with_rule", [False, True])
def test_seen_in_training_step(factor, with_rule, request):
    if with_rule:
        request.getfixturevalue("exact")
    module = Module(log_cosh, factor)
    batch = next(iter(module.train_dataloader()))
    found = ggn_eigenvalues(Problem.from_training_step(module, batch))
    plain = log_cosh.__wrapped__
    expected = eigenvalues_by_autograd(module, lambda f, y: plain(f, y) * factor)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)
    again = ggn_eigenvalues(module.net, log_cosh, *batch) * factor
    torch.testing.assert_close(again, expected, rtol=1e-7, atol=1e-9)


def test_the_monitor_watches_it():
    trainer = L.Trainer(
        max_steps=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        callbacks=[GGNSpectrumMonitor(k=2, every_n_steps=1, on_error="raise")],
    )
    module = Module(log_cosh)
    trainer.fit(module)
    expected = eigenvalues_by_autograd(module, log_cosh.__wrapped__)[-1]
    torch.testing.assert_close(
        trainer.callback_metrics["ggn/eigenvalue_1"].double(), expected, rtol=1e-5, atol=0.0
    )


def test_without_the_decorator_the_error_says_what_to_do():
    module = Module(log_cosh.__wrapped__)
    batch = next(iter(module.train_dataloader()))
    with pytest.raises(ProblemError, match="loss_function"):
        ggn_eigenvalues(Problem.from_training_step(module, batch))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(("rows", "minor"), [(N, False), (2 * N, False), (2 * N, True)])
def test_exact_rule_against_autograd(exact, monkeypatch, reduction, rows, minor):
    name = f"{__name__}.log_cosh"
    monkeypatch.setitem(oracle.FUNCTIONALS, name, log_cosh.__wrapped__)
    multiplier = 1.0 if reduction != "none" else draw(rows, C, seed=2).abs()
    options = {"sharpness": 1.5, "reduction": reduction}
    call = LossCall(name, draw(rows, C), draw(rows, C, seed=1), options, multiplier)
    scale = 1.0 if reduction == "sum" else 1 / N
    loss = oracle.check(call, SampleLayout(N, minor), scale)
    oracle.check_monte_carlo(loss)


def test_a_loss_of_torch_without_a_rule_gets_one(poisson_rule):
    module = Module(F.poisson_nll_loss)
    batch = next(iter(module.train_dataloader()))
    found = ggn_eigenvalues(Problem.from_training_step(module, batch))
    expected = eigenvalues_by_autograd(module, F.poisson_nll_loss)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_after_unregistering_it_is_unknown_again():
    register_loss(F.poisson_nll_loss)(poisson)
    unregister_loss(F.poisson_nll_loss)
    module = Module(F.poisson_nll_loss)
    with pytest.raises(ProblemError, match="poisson_nll_loss"):
        batch = next(iter(module.train_dataloader()))
        ggn_eigenvalues(Problem.from_training_step(module, batch))


def test_one_loss_has_one_rule(exact):
    with pytest.raises(ValueError, match="already has the rule"):
        register_loss(log_cosh)(exact_log_cosh)
    with pytest.raises(ValueError, match="already has the rule"):
        register_loss(F.cross_entropy)(exact_log_cosh)


def test_a_function_that_is_not_seen_is_refused():
    with pytest.raises(ValueError, match="Put the decorator loss_function on it"):
        register_loss(log_cosh.__wrapped__)(exact_log_cosh)


def test_rules_of_the_package_stay():
    unregister_loss(F.mse_loss)
    net = nn.Linear(4, C).double()
    assert ggn_eigenvalues(net, F.mse_loss, draw(N, 4), draw(N, C)).numel() == N * C
