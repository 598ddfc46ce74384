"""The loss that is looked at is the one that is returned, of the samples that were given."""

from __future__ import annotations

import lightning.pytorch as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_vivit import Problem, ProblemError, evaluate, ggn_eigenvalues

N, C = 6, 3
DRAW = torch.Generator().manual_seed(0)
X = torch.randn(N, 4, generator=DRAW, dtype=torch.float64)
Y = torch.randint(0, C, (N,), generator=DRAW)
WEIGHTS = torch.arange(1.0, N + 1, dtype=torch.float64)


class Module(L.LightningModule):
    def __init__(self, step, zero_head: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head, self.other = nn.Linear(4, 5), nn.Linear(5, C), nn.Linear(5, C)
        self.double()
        self.step = step
        if zero_head:
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        self.features = self.body(x).tanh()
        return self.head(self.features)

    def training_step(self, batch, batch_idx):
        return self.step(self, *batch)


def divided(outputs: Tensor, y: Tensor) -> Tensor:
    loss = F.cross_entropy(outputs, y)
    loss /= 3
    return loss


def weighted(outputs: Tensor, y: Tensor) -> Tensor:
    losses = F.cross_entropy(outputs, y, reduction="none")
    losses *= WEIGHTS
    return losses.mean()


def masked(outputs: Tensor, y: Tensor) -> Tensor:
    losses = F.cross_entropy(outputs, y, reduction="none")
    losses[:2] = 0
    return losses.sum()


def penalised(outputs: Tensor, y: Tensor) -> Tensor:
    loss = F.cross_entropy(outputs, y)
    loss += outputs.square().mean()
    return loss


def spectrum(model: nn.Module, loss) -> Tensor:
    """Eigenvalues of J^T H J by autograd."""
    parameters = list(model.parameters())
    outputs = model(X)
    rows = [
        torch.cat([g.flatten() for g in torch.autograd.grad(o, parameters, retain_graph=True)])
        for o in outputs.flatten()
    ]
    hessian = torch.autograd.functional.hessian(
        lambda flat: loss(flat.reshape(N, C).clone(), Y), outputs.detach().flatten()
    )
    jacobian = torch.stack(rows)
    return torch.linalg.eigvalsh(jacobian.T @ hessian @ jacobian)


def compare(found: Tensor, expected: Tensor) -> None:
    count = min(found.numel(), expected.numel())
    torch.testing.assert_close(found[-count:], expected[-count:], rtol=1e-8, atol=1e-10)


def plain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, C)).double()


@pytest.mark.parametrize("loss", [divided, weighted, masked, penalised])
def test_results_that_are_changed_in_place_in_a_loss_function(loss) -> None:
    model = plain()
    compare(ggn_eigenvalues(model, loss, X, Y), spectrum(model, loss))


@pytest.mark.parametrize("loss", [divided, weighted, masked])
def test_results_that_are_changed_in_place_in_a_training_step(loss) -> None:
    module = Module(lambda m, x, y: loss(m(x), y))
    found = evaluate(Problem.from_training_step(module, [X, Y]))
    model = nn.Sequential(module.body, nn.Tanh(), module.head)
    compare(found.eigenvalues(), spectrum(model, loss))
    expected = torch.autograd.grad(loss(module(X), Y), module.head.weight)[0]
    torch.testing.assert_close(found.gradient()["head.weight"], expected)


def entropy(m: Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(m(x), y)


def before_reshape(m: Module, x: Tensor, y: Tensor) -> Tensor:
    outputs = m(x)[:, None]
    return F.cross_entropy(outputs.reshape(-1, C), y) + outputs.square().mean()


def in_place(m: Module, x: Tensor, y: Tensor) -> Tensor:
    return penalised(m(x), y)


def log_sum(m: Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(m(x), y, reduction="none").logsumexp(0)


def overwritten(m: Module, x: Tensor, y: Tensor) -> Tensor:
    outputs = m(x)
    loss = F.cross_entropy(outputs, y)
    outputs.detach().sigmoid_()
    return loss


REFUSED = {
    "penalty added in place": (in_place, "another loss"),
    "logarithm of a sum": (log_sum, "another loss"),
    "penalty before a reshape": (before_reshape, r"more than cross_entropy.*linear in head"),
    "penalty on features": (
        lambda m, x, y: entropy(m, x, y) + m.features.square().mean(),
        r"more than cross_entropy.*linear in body",
    ),
    "second head, written out": (
        lambda m, x, y: entropy(m, x, y) + (m.other(m.features) - 1).square().mean(),
        "more than cross_entropy",
    ),
    "second head, unknown loss": (
        lambda m, x, y: (
            entropy(m, x, y) + F.huber_loss(m.other(m.features), torch.ones(N, C, dtype=x.dtype))
        ),
        "more than cross_entropy",
    ),
    "outputs overwritten": (overwritten, "changed in place after the call"),
    "weight that is learned": (
        lambda m, x, y: F.mse_loss(m(x), m(x).detach(), weight=m.other.bias.exp().expand(N, C)),
        "weight of mse_loss .* depends on the parameters",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_more_than_the_loss_call_is_refused(name: str) -> None:
    step, words = REFUSED[name]
    with pytest.raises(ProblemError, match=words):
        evaluate(Problem.from_training_step(Module(step), [X, Y]))


def test_a_penalty_whose_gradient_vanishes_is_refused_all_the_same() -> None:
    def step(m: Module, x: Tensor, y: Tensor) -> Tensor:
        outputs = m(x)
        return F.cross_entropy(outputs, y) + outputs.square().mean()

    with pytest.raises(ProblemError, match="more than cross_entropy"):
        evaluate(Problem.from_training_step(Module(step, zero_head=True), [X, Y]))
    model = plain()
    nn.init.zeros_(model[2].weight)
    nn.init.zeros_(model[2].bias)

    def loss(outputs: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(outputs, y) + outputs.square().mean()

    compare(ggn_eigenvalues(model, loss, X, Y), spectrum(model, loss))


def test_a_penalty_on_the_parameters_leaves_the_curvature_of_the_loss_call() -> None:
    def step(m: Module, x: Tensor, y: Tensor) -> Tensor:
        return entropy(m, x, y) + 0.1 * (m.head.weight @ m.body.weight).norm()

    found, alone = (
        evaluate(Problem.from_training_step(Module(s), [X, Y])) for s in (step, entropy)
    )
    torch.testing.assert_close(found.eigenvalues(), alone.eigenvalues())


def test_log_probabilities_of_the_model() -> None:
    model = plain()
    found = ggn_eigenvalues(nn.Sequential(*model, nn.LogSoftmax(1)), nn.NLLLoss(), X, Y)
    compare(found, spectrum(model, F.cross_entropy))


def test_samples_keep_their_order_where_the_loss_reorders_them() -> None:
    model, order = plain(), torch.randperm(N, generator=DRAW)
    flipped = evaluate(Problem(model, lambda f, y: F.cross_entropy(f.flip(0), y.flip(0)), X, Y))
    indexed = evaluate(Problem(model, lambda f, y: F.cross_entropy(f[order], y[order]), X, Y))
    expected = evaluate(Problem(model, F.cross_entropy, X, Y))
    for found in (flipped, indexed):
        torch.testing.assert_close(
            found.directions(k=3).lambdas, expected.directions(k=3).lambdas, rtol=1e-8, atol=1e-10
        )


@pytest.mark.parametrize("length", [2, 3, 5])
def test_samples_on_the_second_axis_of_a_sequence(length: int) -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = nn.GRU(4, 5), nn.Linear(5, C)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.cell(x)[0][-1])

    torch.manual_seed(0)
    model = Last().double()
    x = torch.randn(length, N, 4, dtype=torch.float64)
    found = evaluate(Problem(model, F.cross_entropy, x, Y))
    norms = [
        torch.cat(
            [
                g.flatten()
                for g in torch.autograd.grad(
                    F.cross_entropy(model(x)[[n]], Y[[n]]), list(model.parameters())
                )
            ]
        ).norm()
        for n in range(N)
    ]
    torch.testing.assert_close(found.gradient_norms(), torch.stack(norms))


def test_members_of_an_ensemble_before_the_samples() -> None:
    class Ensemble(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.members = nn.ModuleList(nn.Linear(4, C) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([member(x) for member in self.members], dim=1)

    def loss(outputs: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(outputs.transpose(0, 1).flatten(0, 1), y.repeat(2))

    torch.manual_seed(0)
    model = Ensemble().double()
    found = evaluate(Problem(model, loss, X, Y))
    expected = evaluate(
        Problem(
            model, lambda f, y: F.cross_entropy(f.transpose(1, 2), y[:, None].expand(N, 2)), X, Y
        )
    )
    torch.testing.assert_close(found.gradient_norms(), expected.gradient_norms())
    torch.testing.assert_close(found.directions(k=3).lambdas, expected.directions(k=3).lambdas)
