"""A backend is one class and one entry of a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from monitor_toys import Classifier, RecordingLogger, loader, trainer
from torch import Tensor, nn

from lightning_vivit import OptionError, Problem, empirical_ntk, evaluate, ggn_eigenvalues
from lightning_vivit.callbacks import GGNSpectrumMonitor
from lightning_vivit.evaluation.backends import BACKENDS, choose_backend
from lightning_vivit.factors import Dense, Factor
from lightning_vivit.jacobian.backend import Backend
from lightning_vivit.jacobian.passes import Pass
from lightning_vivit.jacobian.structure import Located, Structure
from lightning_vivit.problem.problem import Recording
from lightning_vivit.samples.axis import SampleAxis


class RowsBackend(Backend):
    """One backward pass for each sample and column: slow, and right for all that is batched."""

    name = "rows"
    cost = 0.5
    used = 0

    def refusal(self, problem: Problem) -> str | None:
        few = problem.num_samples <= 10
        return None if few else "Rows of more than 10 samples take too long. Use backend='auto'."

    def expected_cost(self, problem: Problem) -> float:
        return self.cost

    def locate(self, recording: Recording) -> Located:
        outputs = recording.outputs
        return Located(recording.tape, outputs, SampleAxis(0, outputs.shape[0]), Structure())

    def passes(
        self,
        located: Located,
        names: Sequence[str],
        num_samples: int,
        num_columns: int,
        fixed: int,
        budget: int,
    ) -> list[Pass]:
        return [Pass((name,), 1, 0) for name in names]

    def factors(
        self, located: Located, columns: Tensor, names: Sequence[str], gathers: bool = False
    ) -> dict[str, Factor]:
        type(self).used += 1
        found: dict[str, Factor] = {}
        for name in names:
            parameter = located.tape.parameters[name]
            rows = []
            for sample in range(located.axis.num_samples):
                for column in columns:
                    own = torch.zeros_like(column)
                    own[sample] = column[sample]
                    (row,) = torch.autograd.grad(located.outputs, parameter, own, retain_graph=True)
                    rows.append(row.reshape(-1))
            shape = (located.axis.num_samples, len(columns), -1)
            found[name] = Dense(torch.stack(rows).reshape(shape), parameter.shape)
        return found


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> type[RowsBackend]:
    monkeypatch.setitem(BACKENDS, "rows", RowsBackend)
    monkeypatch.setattr(RowsBackend, "used", 0)
    return RowsBackend


def stated() -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    return model, nn.CrossEntropyLoss(), torch.randn(6, 5).double(), torch.arange(6) % 3


def test_it_gives_the_same_numbers(rows: type[RowsBackend]) -> None:
    problem = stated()
    ours = evaluate(Problem(*problem), backend="autograd")
    found = evaluate(Problem(*problem), backend="rows")
    assert rows.used == 4  # one pass for each parameter
    for question in ("eigenvalues", "ntk", "gradient_norms"):
        expected = getattr(ours, question)()
        torch.testing.assert_close(getattr(found, question)(), expected, rtol=1e-9, atol=1e-12)
    for name, step in ours.newton_step(k=3).items():
        torch.testing.assert_close(found.newton_step(k=3)[name], step, rtol=1e-7, atol=1e-10)
    model, _, x, _ = problem
    for options in ({}, {"mode": "pseudo"}, {"x2": x[:2]}):
        expected = empirical_ntk(model, x, **options)
        kernel = empirical_ntk(model, x, backend="rows", **options)
        torch.testing.assert_close(kernel, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("cost", "name"), [(0.5, "rows"), (2.0, "autograd")])
def test_auto_takes_the_least_cost(
    rows: type[RowsBackend], monkeypatch: pytest.MonkeyPatch, cost: float, name: str
) -> None:
    monkeypatch.setattr(rows, "cost", cost)
    assert choose_backend("auto", Problem(*stated())).name == name
    ggn_eigenvalues(*stated())
    assert (rows.used > 0) == (name == "rows")


def test_auto_takes_what_can(rows: type[RowsBackend]) -> None:
    evaluate(Problem(*stated()), method="mc", backend="auto")
    assert rows.used == 0
    with pytest.raises(OptionError, match=r"'rows' has exact columns.*backend='autograd'"):
        evaluate(Problem(*stated()), method="mc", backend="rows")
    model, loss, x, y = stated()
    many = Problem(model, loss, x.repeat(2, 1), y.repeat(2))
    evaluate(many, backend="auto")
    assert rows.used == 0
    with pytest.raises(OptionError, match="more than 10 samples"):
        evaluate(many, backend="rows")


def test_without_columns_of_each_sample_all_outputs_are_weighed(rows: type[RowsBackend]) -> None:
    ours = evaluate(Problem(*stated()), matrix="empirical_fisher", backend="autograd")
    found = evaluate(Problem(*stated()), matrix="empirical_fisher", backend="rows")
    assert found.knows("ntk") and not ours.knows("ntk")
    torch.testing.assert_close(
        found.eigenvalues()[-6:], ours.eigenvalues()[-6:], rtol=1e-9, atol=1e-12
    )


def test_a_backend_without_products_leaves_no_choice(rows: type[RowsBackend]) -> None:
    options: dict[str, Any] = {"method": "auto", "max_memory": 1000, "k": 1}
    assert not evaluate(Problem(*stated()), **options).whole_spectrum
    assert evaluate(Problem(*stated()), backend="rows", **options).whole_spectrum


def test_a_monitor_takes_it_by_its_name(rows: type[RowsBackend], tmp_path: Path) -> None:
    log = RecordingLogger()
    monitor = GGNSpectrumMonitor(k=2, steps=[0], backend="rows", on_error="raise")
    trainer(tmp_path, monitor, logger=log).fit(Classifier(), loader())
    assert rows.used > 0 and 0 in log.values("ggn/trace")


def test_an_unknown_name_is_refused_with_all_that_are_known(rows: type[RowsBackend]) -> None:
    message = "backend has to be one of 'auto', 'autograd', 'backpack', 'rows', got 'jax'"
    with pytest.raises(OptionError, match=message):
        evaluate(Problem(*stated()), backend="jax")
    with pytest.raises(OptionError, match=message):
        GGNSpectrumMonitor(backend="jax")
