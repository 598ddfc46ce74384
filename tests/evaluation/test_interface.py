"""Every result answers a question, or says with its own reason why not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_vivit import OptionError, Problem, evaluate
from lightning_vivit.evaluation.evaluate import evaluate_request
from lightning_vivit.evaluation.interface import QUESTIONS, Question, Result
from lightning_vivit.evaluation.request import Request
from lightning_vivit.kernel.modes import OutputKernel

CURVATURE = set(QUESTIONS) - {"ntk"}


def problem(loss: bool = True) -> Problem:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    x, y = torch.randn(6, 5).double(), torch.tensor([0, 1, 2, 0, 1, 2])
    return Problem(model, nn.CrossEntropyLoss(), x, y) if loss else Problem(model, None, x)


def kernel_only(mode: str, loss: bool = True) -> Result:
    request = Request(output_kernel=OutputKernel.of(mode))
    return evaluate_request(problem(loss), request)


RESULTS: dict[str, tuple[Callable[[], Result], dict[Question, str]]] = {
    "exact": (lambda: evaluate(problem()), {}),
    "loss_directions": (
        lambda: evaluate(problem(), kernel=False),
        {"ntk": "only the directions of the outputs that the loss sees.*kernel=True"},
    ),
    "monte_carlo": (
        lambda: evaluate(problem(), method="mc", mc_samples=2),
        {"ntk": "columns of each sample's own.*kernel=True"},
    ),
    "monte_carlo_and_kernel": (
        lambda: evaluate(problem(), method="mc", mc_samples=2, kernel=True),
        {},
    ),
    "empirical_fisher": (
        lambda: evaluate(problem(), matrix="empirical_fisher"),
        {"ntk": "columns of each sample's own.*kernel=True"},
    ),
    "no_loss": (
        lambda: evaluate(problem(loss=False)),
        dict.fromkeys(CURVATURE, "The problem has no loss"),
    ),
    "matrix_free": (
        lambda: evaluate(problem(), method="matrix_free", k=2, tol=1e-6),
        {"ntk": "matrix-free evaluation has no NTK"},
    ),
    "hessian": (
        lambda: evaluate(problem(), matrix="hessian", k=2, tol=1e-6),
        {
            "ntk": "matrix-free evaluation has no NTK",
            "directions": "Slopes and curvatures .* of the Hessian",
            "newton_step": "Slopes and curvatures .* of the Hessian",
        },
    ),
    "kernel_only": (
        lambda: kernel_only("full"),
        dict.fromkeys(CURVATURE, "Only the NTK was evaluated, in mode 'full'"),
    ),
    "kernel_estimate": (
        lambda: kernel_only("projected", loss=False),
        dict.fromkeys(CURVATURE, "Only the NTK was evaluated, in mode 'projected'"),
    ),
}


def ask(found: Result, question: Question) -> Any:
    options: dict[str, Any] = {"newton_step": {"k": 2, "damping": 1.0}}.get(question, {})
    if question in ("eigenvectors", "directions"):
        options = {"k": 2}
    if question == "ntk" and hasattr(found, "wanted"):
        options = {"mode": found.wanted.mode}
    return getattr(found, question)(**options)


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("name", RESULTS)
def test_a_question_is_answered_or_refused_with_the_reason(name: str, question: Question) -> None:
    make, refusals = RESULTS[name]
    found = make()
    assert found.knows(question) == (question not in refusals)
    if question in refusals:
        with pytest.raises(OptionError, match=refusals[question]):
            ask(found, question)
        return
    assert found.refusal(question) is None
    assert ask(found, question) is not None


@pytest.mark.parametrize("name", RESULTS)
def test_what_every_result_tells(name: str) -> None:
    make, refusals = RESULTS[name]
    found = make()
    assert found.num_samples == 6 and found.outputs.shape == (6, 3)
    assert set(found.groups) == {"all"} and found.unused == []
    assert found.explain()
    has_loss = name not in ("no_loss", "kernel_estimate")
    assert (found.loss is not None) == has_loss
    targets = found.sample_targets()
    assert (targets is not None and targets.tolist() == [0, 1, 2, 0, 1, 2]) == has_loss
    if "directions" not in refusals:
        fewer = {"monte_carlo": 2, "monte_carlo_and_kernel": 2, "empirical_fisher": 1}
        columns = fewer.get(name, 3)
        assert found.num_directions == 6 * columns
    assert found.products == 0 and found.warm_start() == {}  # nothing was searched for yet


def test_a_search_counts_its_products_and_can_be_continued() -> None:
    found = RESULTS["matrix_free"][0]()
    found.eigenvalues()
    assert found.products > 0
    assert found.warm_start()["all"].values.shape[0] >= 2


@pytest.mark.parametrize("name", ["exact", "loss_directions", "matrix_free"])
def test_spectrum_and_trace(name: str) -> None:
    found, truth = RESULTS[name][0](), explicit_ggn()
    expected = torch.linalg.eigvalsh(truth)
    values = found.eigenvalues()
    assert found.whole_spectrum == (values.numel() == 18)
    torch.testing.assert_close(values[-2:], expected[-2:], rtol=1e-9, atol=0)
    trace = found.trace()
    if found.whole_spectrum:
        assert trace.error == 0.0
    assert trace.value == pytest.approx(float(truth.trace()), rel=1e-9, abs=4 * trace.error)


def test_only_an_estimated_kernel_has_a_standard_error() -> None:
    assert evaluate(problem()).ntk_standard_error() is None
    assert kernel_only("full").ntk_standard_error() is None
    error = kernel_only("projected").ntk_standard_error()
    assert error is not None and error.shape == (6, 6)


@pytest.mark.parametrize("name", ["exact", "matrix_free", "kernel_only"])
def test_an_unknown_group_is_refused_by_all(name: str) -> None:
    found = RESULTS[name][0]()
    ask_group = found.eigenvalues if found.knows("eigenvalues") else found.ntk
    with pytest.raises(OptionError, match=r"Unknown parameter group 'tail'.*has: all"):
        ask_group("tail")


def explicit_ggn() -> Tensor:
    """The GGN from explicit Jacobians, [P, P]."""
    stated = problem()
    parameters = list(stated.model.parameters())
    total = torch.zeros(39, 39, dtype=torch.float64)
    for x in stated.inputs:
        out = stated.model(x)
        rows = [torch.autograd.grad(o, parameters, retain_graph=True) for o in out]
        jacobian = torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows])
        p = out.detach().softmax(0)
        total += jacobian.T @ (p.diag() - torch.outer(p, p)) @ jacobian / 6
    return total
