"""Monitors that look at the same data at the same step pay for one evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from monitor_toys import Classifier, RecordingLogger, blobs, loader, trainer

from lightning_vivit.callbacks import (
    DirectionalDerivativesMonitor,
    GGNSpectrumMonitor,
    Monitor,
    NTKMonitor,
    base,
    over_ranks,
    probe,
)
from lightning_vivit.callbacks.step import look
from lightning_vivit.evaluation.evaluate import evaluate_request
from lightning_vivit.evaluation.request import Request
from lightning_vivit.problem.problem import Problem


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    found: list[Request] = []

    def counted(problem: Problem, request: Request) -> Any:
        found.append(request)
        return evaluate_request(problem, request)

    monkeypatch.setattr(over_ranks, "evaluate_request", counted)
    return found


def three(**options: Any) -> list[Monitor]:
    options = {"k": 2, "every_n_steps": 3, "on_error": "raise", **options}
    kinds = (GGNSpectrumMonitor, DirectionalDerivativesMonitor, NTKMonitor)
    return [kind(**options) for kind in kinds]


def fit(tmp_path: Path, *callbacks: pl.Callback) -> RecordingLogger:
    log = RecordingLogger()
    trainer(tmp_path, *callbacks, logger=log).fit(Classifier(), loader(), loader())
    return log


@pytest.mark.parametrize("data", ["batch", "train", "val"])
def test_three_monitors_one_evaluation(tmp_path: Path, calls: list[Request], data: str) -> None:
    log = fit(tmp_path, *three(data=data))
    assert len(calls) == 2  # steps 0 and 3
    assert {key.split("/")[0] for key in log.seen()} >= {"ggn", "directions", "ntk"}


@pytest.fixture(params=[1, 2, 4])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Torch's threads, whatever the machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_spectra_of_many_rows(tmp_path: Path, order: tuple[int, ...], threads: int) -> None:
    """640 rows, as in the demonstration: above all sizes that are treated as small."""
    data = blobs(samples=128, classes=5)
    torch.manual_seed(0)
    module = Classifier(classes=5)
    twin = deepcopy(module).double()
    inputs = data.tensors[0].double()
    outputs = twin(inputs)
    gradients = [
        torch.autograd.grad(output, list(twin.parameters()), retain_graph=True)
        for output in outputs.flatten()
    ]
    rows = torch.stack([torch.cat([part.flatten() for part in each]) for each in gradients])
    chances = outputs.detach().softmax(1)
    root = chances.sqrt().diag_embed() - chances.unsqueeze(2) * chances.sqrt().unsqueeze(1)
    weighted = torch.einsum("ncp,nck->nkp", rows.reshape(128, 5, -1), root).flatten(0, 1)
    expected = {
        "ntk": torch.linalg.svdvals(rows).square(),
        "ggn": torch.linalg.svdvals(weighted).square() / 128,
    }
    options: dict[str, Any] = {"k": 3, "steps": [0], "max_samples": 128, "data": "train"}
    kinds = (GGNSpectrumMonitor, DirectionalDerivativesMonitor, NTKMonitor)
    log = RecordingLogger()
    callbacks = [kinds[i](**options, on_error="raise") for i in order]
    trainer(tmp_path, *callbacks, logger=log).fit(module, loader(data, batch_size=128))
    for section, values in expected.items():
        found = [log.values(f"{section}/eigenvalue_{i}")[0] for i in (1, 2, 3)]
        assert found == pytest.approx(values[:3].tolist(), rel=1e-4)
    assert log.values("ntk/trace")[0] == pytest.approx(float(expected["ntk"].sum()), rel=1e-5)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize(
    ("other", "wanted"),
    [
        ({"steps": [0, 3]}, [True, False, False, True]),
        ({"every_n_steps": 2}, [True, False, True, False, True]),
        ({"schedule": lambda step: step == 1}, [True] * 4),  # it can't be known before
        ({"steps": [1, 3], "on_result": lambda result: 1 / 0}, [False, True, False, False]),
        ({"steps": [0], "mode": "trace"}, [True, False, False, False]),
        ({"steps": [0], "mode": "pseudo"}, [False] * 4),  # it has an evaluation of its own
    ],
)
@pytest.mark.filterwarnings("ignore:NTKMonitor")  # stopped by on_result
def test_all_columns_only_at_steps_that_need_the_kernel(
    tmp_path: Path,
    calls: list[Request],
    order: tuple[int, ...],
    other: dict[str, Any],
    wanted: list[bool],
) -> None:
    def ggn() -> Monitor:
        return GGNSpectrumMonitor(k=2, steps=[0, 1, 2, 3], data="train", on_error="raise")

    def values(*callbacks: pl.Callback) -> dict[tuple[int, str], float]:
        torch.manual_seed(0)
        rows = fit(tmp_path, *callbacks).rows
        return {(n, k): v for n, row in rows for k, v in row.items() if k.startswith("ggn/")}

    alone = values(ggn())
    assert [request.kernel for request in calls] == [False] * 4
    calls.clear()
    monitors = [ggn(), NTKMonitor(k=2, **other)]
    assert values(*(monitors[i] for i in order)) == pytest.approx(alone, rel=1e-4, abs=1e-6)
    assert [request.kernel for request in calls if request.output_kernel is None] == wanted
    shared = monitors[1].needs_kernel
    assert {request.method for request in calls} == {"gram" if shared else "auto"}


def test_a_given_probe_is_shared(tmp_path: Path, calls: list[Request]) -> None:
    fit(tmp_path, *three(probe=next(iter(loader()))))
    assert len(calls) == 2


def test_an_explicit_problem_is_shared(tmp_path: Path, calls: list[Request]) -> None:
    def problem(module: pl.LightningModule, batch: Any) -> Problem:
        return Problem(module, torch.nn.CrossEntropyLoss(), batch[0], batch[1])

    fit(tmp_path, *three(data="batch", problem=problem))
    assert len(calls) == 2


def test_different_k_and_schedules_share_where_they_meet(
    tmp_path: Path, calls: list[Request]
) -> None:
    fit(
        tmp_path,
        GGNSpectrumMonitor(k=1, every_n_steps=2),
        DirectionalDerivativesMonitor(k=4, every_n_steps=3),
    )
    assert len(calls) == 4  # steps 0, 2, 3, 4


@pytest.mark.parametrize(
    "other",
    [
        {"data": "train"},
        {"max_samples": 4},
        {"param_groups": "layer"},
        {"dtype": "float32"},
        {"mc_samples": 2},
    ],
)
def test_other_options_are_evaluated_on_their_own(
    tmp_path: Path, calls: list[Request], other: dict[str, Any]
) -> None:
    fit(
        tmp_path,
        GGNSpectrumMonitor(steps=[0]),
        DirectionalDerivativesMonitor(steps=[0], **other),
    )
    assert len(calls) == 2


def test_one_probe_is_drawn_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    original = probe.BatchSource._draw
    monkeypatch.setattr(
        probe.BatchSource,
        "_draw",
        lambda self, loaders: drawn.append(1) or original(self, loaders),  # type: ignore[func-returns-value]
    )
    monitors = three(data="val")
    fit(tmp_path, *monitors)
    assert len(drawn) == 1
    assert len({id(monitor.source.probe[0]) for monitor in monitors}) == 1


def test_the_evaluation_is_freed_before_the_step(tmp_path: Path) -> None:
    kept: list[int] = []

    class Peek(Classifier):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            kept.append(len(monitors[0].session.results))

    monitors = three()
    trainer(tmp_path, *monitors, logger=RecordingLogger()).fit(Peek(), loader())
    assert kept == [0] * 6


def test_steps_that_are_not_due_do_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    monkeypatch.setattr(
        base,
        "look",
        lambda monitor, *args: looked.append(monitor.step) or look(monitor, *args),  # type: ignore[func-returns-value]
    )
    fit(tmp_path, GGNSpectrumMonitor(steps=[4]))
    assert looked == [4]
