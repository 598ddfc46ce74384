"""The problem that a LightningModule's own training_step states equals the explicit one."""

from __future__ import annotations

import copy

import lightning.pytorch as L
import pytest
import torch
import torch.nn.functional as F
from oracle.networks import N
from oracle.reference import case, jacobian
from torch import Tensor, nn

from lightning_vivit import Problem, evaluate


class Step(L.LightningModule):
    """Calls a function of (network, inputs, targets) as its training step."""

    def __init__(self, model: nn.Module, step) -> None:
        super().__init__()
        self.model = model
        self.step = step

    def training_step(self, batch: list[Tensor], batch_idx: int):
        return self.step(self.model, *batch)


def flattened(model, x, y):
    logits = model(x)
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), y.reshape(-1))


def time_major(model, x, y):
    logits = model(x).transpose(0, 1)
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), y.t().reshape(-1))


def class_axis(model, x, y):
    return nn.CrossEntropyLoss()(model(x).transpose(1, 2), y)


def log_softmax(model, x, y):
    log_p = F.log_softmax(model(x), dim=-1)
    return F.nll_loss(log_p.view(-1, log_p.shape[-1]), y.view(-1))


def explicit(model, x, y):
    return Problem(model, lambda out, t: F.cross_entropy(out.transpose(1, 2), t), x, y)


@pytest.mark.parametrize("step", [flattened, time_major, class_axis, log_softmax])
@pytest.mark.parametrize("name", ["gpt_tied"])
def test_tokens_belong_to_their_sequence(name: str, step) -> None:
    found = case(name)
    y = torch.randint(0, 3, (N, 4), generator=torch.Generator().manual_seed(0))
    expected = evaluate(explicit(found.model, found.inputs, y))
    result = evaluate(Problem.from_training_step(Step(found.model, step), [found.inputs, y]))
    assert result.num_samples == N
    torch.testing.assert_close(result.eigenvalues(), expected.eigenvalues(), rtol=1e-9, atol=1e-12)
    k = 3
    torch.testing.assert_close(
        result.directions(k=k).lambdas, expected.directions(k=k).lambdas, rtol=1e-8, atol=1e-10
    )
    torch.testing.assert_close(result.loss, expected.loss)


def mean_of_none(model, x, y):
    return F.cross_entropy(model(x), y, reduction="none").mean()


def weighted_none(model, x, y):
    weights = torch.tensor([1.0, 0.5, 2.0, 0.25], dtype=torch.float64)
    return (F.cross_entropy(model(x), y, reduction="none") * weights).sum()


def scaled(model, x, y):
    return {"loss": 0.25 * F.cross_entropy(model(x), y, label_smoothing=0.1), "extra": 1}


def nll(model, x, y):
    return nn.NLLLoss()(model(x).log_softmax(1), y)


def sum_of_squares(model, x, y):
    return F.mse_loss(model(x), F.one_hot(y, 3).double(), reduction="sum")


def binary(model, x, y):
    return F.binary_cross_entropy_with_logits(model(x), F.one_hot(y, 3).double())


def penalised(model, x, y):
    penalty = sum(p.square().sum() for p in model.parameters())
    return F.cross_entropy(model(x), y) + 0.1 * penalty


STEPS = [mean_of_none, weighted_none, scaled, nll, sum_of_squares, binary, penalised]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    "name", ["mlp_relu", "resnet_batchnorm_eval", "transformer_sequence_first", "lstm"]
)
def test_eigenvalues_are_those_of_the_returned_loss(name: str, step) -> None:
    found = case(name)
    y = torch.tensor([0, 2, 1, 2])
    module = Step(copy.deepcopy(found.model), step).train()
    result = evaluate(Problem.from_training_step(module, [found.inputs, y]))
    assert all(child.training for child in module.modules())
    outputs = found.model(found.inputs).detach()

    def loss(flat: Tensor) -> Tensor:
        class Fixed(nn.Module):
            def forward(self, _):
                return flat.reshape(outputs.shape)

        returned = step(Fixed(), found.inputs, y)
        return returned["loss"] if isinstance(returned, dict) else returned

    rows = jacobian(name).flatten(0, 1)
    hessian = torch.autograd.functional.hessian(loss, outputs.flatten())
    expected = torch.linalg.eigvalsh(rows.T @ hessian @ rows)
    values = result.eigenvalues()
    count = min(values.numel(), expected.numel())
    torch.testing.assert_close(values[-count:], expected[-count:], rtol=1e-9, atol=1e-10)


def test_dict_batches_and_batch_index() -> None:
    found = case("mlp_relu")

    class Dicts(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = found.model

        def training_step(self, batch, batch_idx, dataloader_idx=0):
            assert batch_idx == 7
            return {"loss": F.cross_entropy(self.model(batch["x"]), batch["target"]["y"])}

    y = torch.tensor([0, 2, 1, 2])
    batch = {"x": found.inputs, "target": {"y": y}, "id": ["a", "b", "c", "d"]}
    result = evaluate(Problem.from_training_step(Dicts(), batch, 7))
    expected = evaluate(Problem(found.model, nn.CrossEntropyLoss(), found.inputs, y))
    torch.testing.assert_close(result.eigenvalues(), expected.eigenvalues())
