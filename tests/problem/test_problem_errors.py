"""Wrong problems get one clear error each; modules that cannot be copied are put back."""

from __future__ import annotations

import lightning.pytorch as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_vivit import (
    OptionError,
    Problem,
    ProblemError,
    directional_derivatives,
    empirical_ntk,
    evaluate,
    ggn_eigenvalues,
    newton_step,
)

X, Y = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1])


class Module(L.LightningModule):
    def __init__(self, step=None) -> None:
        super().__init__()
        self.net = nn.Linear(4, 3)
        self.step = step

    def training_step(self, batch, batch_idx):
        return self.step(self, *batch)


def evaluated(step, batch=(X, Y)):
    return evaluate(Problem.from_training_step(Module(step), list(batch)))


STEPS = {
    "several loss calls": (
        lambda m, x, y: F.cross_entropy(m.net(x), y) + F.mse_loss(m.net(x), torch.zeros(5, 3)),
        r"2 loss calls.*ambiguous",
    ),
    "no loss call": (lambda m, x, y: m.net(x).square().mean(), r"No loss call was seen.*Known"),
    "unknown loss": (
        lambda m, x, y: F.huber_loss(m.net(x), torch.zeros(5, 3)),
        r"huber_loss, which has no rule.*problem=",
    ),
    "not linear in the loss": (
        lambda m, x, y: F.cross_entropy(m.net(x), y).square(),
        "another loss",
    ),
    "focal loss": (
        lambda m, x, y: (lambda e: ((1 - (-e).exp()) * e).mean())(
            F.cross_entropy(m.net(x), y, reduction="none")
        ),
        "another loss",
    ),
    "penalty on the outputs": (
        lambda m, x, y: (lambda out: F.cross_entropy(out, y) + out.square().mean())(m.net(x)),
        "further way",
    ),
    "returns nothing": (lambda m, x, y: None, "returned NoneType"),
    "detached outputs": (lambda m, x, y: F.cross_entropy(m.net(x).detach(), y), "No loss call"),
    "NaN loss": (lambda m, x, y: F.cross_entropy(m.net(x) * float("nan"), y), "not finite"),
    "infinite targets": (
        lambda m, x, y: F.mse_loss(m.net(x), torch.full((5, 3), torch.inf)),
        "not finite",
    ),
}


@pytest.mark.parametrize("name", STEPS)
def test_training_steps(name: str) -> None:
    step, words = STEPS[name]
    with pytest.raises(ProblemError, match=words):
        evaluated(step)


def test_no_trainable_parameter() -> None:
    module = Module(lambda m, x, y: F.cross_entropy(m.net(x), y)).requires_grad_(False)
    with pytest.raises(ProblemError, match="no trainable parameter"):
        evaluate(Problem.from_training_step(module, [X, Y]))


def test_manual_optimization_and_data_iterators() -> None:
    module = Module()
    module.automatic_optimization = False
    with pytest.raises(ProblemError, match=r"manual optimization.*problem="):
        Problem.from_training_step(module, [X, Y])

    class Iterates(Module):
        def training_step(self, dataloader_iter):
            return None

    with pytest.raises(ProblemError, match="dataloader_iter"):
        Problem.from_training_step(Iterates(), [X, Y])
    with pytest.raises(ProblemError, match="another class"):
        Problem.from_training_step(nn.Linear(2, 2), [X, Y])


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (["text"], "without any tensor"),
        ([torch.zeros(0, 4), torch.zeros(0)], "empty"),
        ([torch.tensor(3.0)], "without any tensor"),
    ],
)
def test_batches(batch, words: str) -> None:
    with pytest.raises(ProblemError, match=words):
        evaluated(lambda m, *_: F.cross_entropy(m.net(X), Y), batch)


class Outputs(nn.Module):
    def __init__(self, change) -> None:
        super().__init__()
        self.net, self.change = nn.Linear(4, 3), change

    def forward(self, x: Tensor):
        return self.change(self.net(x))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda out: out.argmax(1), "no derivative"),
        (lambda out: out.sum(), "one number for the whole batch"),
        (lambda out: (out, out), "returned tuple"),
        (lambda out: out.detach(), "do not depend on any trainable parameter"),
    ],
)
def test_outputs(change, words: str) -> None:
    with pytest.raises(ProblemError, match=words):
        empirical_ntk(Outputs(change), X)


def test_options_of_the_functions() -> None:
    model, loss = nn.Linear(4, 3), nn.CrossEntropyLoss()
    with pytest.raises(OptionError, match=r"k=16.*at most"):
        directional_derivatives(model, loss, X, Y, k=16)
    with pytest.raises(OptionError, match=r"k=0"):
        directional_derivatives(model, loss, X, Y, k=0)
    with pytest.raises(OptionError, match="Unknown parameter group 'block'"):
        ggn_eigenvalues(model, loss, X, Y, param_groups="block")
    with pytest.raises(OptionError, match="'head' is none of the module's trainable"):
        ggn_eigenvalues(model, loss, X, Y, param_groups=[["head"]])
    with pytest.raises(OptionError, match="in the groups"):
        ggn_eigenvalues(model, loss, X, Y, param_groups=[["weight"], ["weight"]])
    with pytest.raises(OptionError, match="index from 0 to 4"):
        ggn_eigenvalues(model, loss, X, Y, samples=[7])
    with pytest.raises(OptionError, match="Unknown mode 'block'"):
        empirical_ntk(model, X, mode="block")
    with pytest.raises(OptionError, match="Got no loss"):
        ggn_eigenvalues(model, inputs=X, targets=Y)
    with pytest.raises(OptionError, match="positive damping"):
        newton_step(model, loss, X, Y, k=2, damping=-100.0)
    with pytest.raises(OptionError, match="damping of shape"):
        newton_step(model, loss, X, Y, k=2, damping=torch.ones(3))
    with pytest.raises(ProblemError, match="same shape"):
        empirical_ntk(model, X, torch.randn(3, 5))
    with pytest.raises(OptionError, match="only the NTK"):
        evaluate(Problem(model, None, X)).directions(k=1)


def test_a_group_of_unused_parameters() -> None:
    model = nn.ModuleDict({"used": nn.Linear(4, 3), "unused": nn.Linear(2, 2)})
    model.forward = lambda x: model["used"](x)
    found = evaluate(Problem(model, nn.CrossEntropyLoss(), X, Y))
    assert found.unused == ["unused.weight", "unused.bias"]
    with pytest.raises(OptionError, match="Choose a parameter group"):
        evaluate(Problem(model, nn.CrossEntropyLoss(), X, Y), param_groups={"only": ["unused"]})


class KeepsGraph(L.LightningModule):
    """Keeps a tensor with a graph, so that it cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(), nn.Linear(6, 3))
        self.seen: list[int] = []
        self.count = 0
        self.last: Tensor | None = None

    def training_step(self, batch, batch_idx):
        x, y = batch
        self.last = self.net(x)
        self.seen.append(len(x))
        self.count += 1
        return F.cross_entropy(self.last, y)


def test_a_module_that_cannot_be_copied_is_put_back() -> None:
    torch.manual_seed(0)
    module = KeepsGraph()
    module.training_step([X, Y], 0)
    kept, buffers = module.last, [buffer.clone() for buffer in module.buffers()]
    state = torch.get_rng_state()
    found = evaluate(Problem.from_training_step(module, [X, Y]))
    assert module.last is kept
    assert (module.seen, module.count) == ([5], 1)
    assert all(child.training for child in module.modules())
    for buffer, before in zip(module.buffers(), buffers, strict=True):
        assert torch.equal(buffer, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert type(module) is KeepsGraph
    module.eval()
    expected = ggn_eigenvalues(module.net, nn.CrossEntropyLoss(), X, Y)
    torch.testing.assert_close(found.eigenvalues(), expected, rtol=1e-4, atol=1e-6)
