"""Evaluations inside a memory budget give the same results."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from oracle.reference import case
from torch import nn

from lightning_vivit import Problem, ProblemError, empirical_ntk, evaluate
from lightning_vivit.jacobian.autograd import AutogradBackend
from lightning_vivit.kernel.compute import KernelTask, compute_kernels

TARGETS = torch.tensor([0, 2, 1, 2])
TIGHT = 28_000  # bytes; the whole of the network "cnn" needs more
NAMES = ["mlp_relu", "resnet_batchnorm_eval", "weight_norm", "lstm", "module_called_twice", "cnn"]


@pytest.mark.parametrize("name", NAMES)
def test_small_budgets_change_nothing(name: str) -> None:
    found = case(name)
    problem = Problem(found.model, nn.CrossEntropyLoss(), found.inputs, TARGETS)
    whole = evaluate(problem, param_groups="parameter")
    seen_passes = set()
    for budget in (4_000, 8_000, 16_000, 32_000, 64_000, 256_000):
        try:
            part = evaluate(problem, param_groups="parameter", max_memory=budget + 1_000_000)
            kernel = empirical_ntk(found.model, found.inputs, max_memory=budget)
            cross = empirical_ntk(
                found.model, found.inputs[:1], found.inputs[1:], max_memory=budget
            )
            trace = empirical_ntk(found.model, found.inputs, mode="trace", max_memory=budget)
        except ProblemError as error:
            assert "max_memory" in str(error)
            continue
        seen_passes.add(budget)
        total = empirical_ntk(found.model, found.inputs)
        torch.testing.assert_close(kernel, total, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(cross, total[:1, 1:], rtol=1e-10, atol=1e-10)
        expected = total.diagonal(0, 2, 3).sum(-1)
        torch.testing.assert_close(trace, expected, rtol=1e-10, atol=1e-10)
        for group in whole.groups:
            torch.testing.assert_close(part.eigenvalues(group), whole.eigenvalues(group))
    assert seen_passes


def plan_of(name: str, budget: int):
    """The passes and the kernel of a network under a budget."""
    from lightning_vivit.jacobian.columns import unit_columns

    found = case(name)
    problem = Problem(found.model, None, found.inputs)
    backend = AutogradBackend()
    with problem.recorded() as recording:
        located = backend.locate(recording)
        columns = unit_columns(located.outputs, located.layout)
        groups = {"all": list(recording.tape.parameters)}
        task = KernelTask(backend, located, columns, groups)
        return compute_kernels(task, max_memory=budget)


def test_a_smaller_budget_takes_more_passes() -> None:
    free = plan_of("cnn", 1 << 30)
    tight = plan_of("cnn", TIGHT)
    assert free.plan.passes == 1
    assert free.factors is not None
    assert tight.plan.passes > 1
    assert tight.factors is None
    torch.testing.assert_close(tight.blocks["all"], free.blocks["all"])


def test_eigenvectors_without_kept_factors() -> None:
    found = case("cnn")
    problem = Problem(found.model, nn.CrossEntropyLoss(), found.inputs, TARGETS)
    kept, tight = evaluate(problem), evaluate(problem, max_memory=TIGHT)
    first, second = kept.eigenvectors(k=2), tight.eigenvectors(k=2)
    for name in first:
        torch.testing.assert_close(first[name].abs(), second[name].abs(), rtol=1e-7, atol=1e-9)


def test_too_small_a_budget_says_what_would_fit() -> None:
    found = case("cnn")
    with pytest.raises(ProblemError, match=r"max_samples.*mc_samples"):
        empirical_ntk(found.model, found.inputs, max_memory=100)


def test_out_of_memory_is_tried_again_with_half(monkeypatch: pytest.MonkeyPatch) -> None:
    import lightning_vivit.kernel.compute as kernels

    original, budgets = kernels._compute, []

    def fails_twice(task, mode, split, budget):
        budgets.append(budget)
        if len(budgets) < 3:
            raise torch.OutOfMemoryError("no room")
        return original(task, mode, split, budget)

    monkeypatch.setattr(kernels, "_compute", fails_twice)
    found = case("mlp_relu")
    empirical_ntk(found.model, found.inputs, max_memory=1 << 20)
    assert budgets == [1 << 20, 1 << 19, 1 << 18]


def test_explain_names_every_layer_and_order() -> None:
    found = case("resnet_batchnorm_eval")
    problem = Problem(found.model, nn.CrossEntropyLoss(), found.inputs, TARGETS)
    table = evaluate(problem).explain()
    for name in ("0.weight", "3.conv1.weight", "4.bn2.weight", "7.weight, bias"):
        assert name in table
    assert "predicted" in table
    assert "backward sweeps (1)" in table


MEASURE = """
import sys, torch
from benchmarks.measure import peak_memory
from benchmarks.workloads import build
from lightning_vivit import Problem, evaluate

short, budget = sys.argv[1], int(sys.argv[2]) or None
work = build(short)
loss = torch.nn.CrossEntropyLoss()
problem = Problem(work.model, loss, work.inputs, work.targets)
evaluate(problem, max_memory=budget, kernel=False)  # the proof, and what is allocated for good
found = []

def task():
    found.append(evaluate(problem, max_memory=budget, kernel=False).eigenvalues())

def forward():
    with problem.recorded():
        pass

cpu = torch.device("cpu")
print(peak_memory(task, cpu) - peak_memory(forward, cpu), *found[-1][-20:].tolist())
"""


def measured(short: str, budget: int) -> tuple[float, torch.Tensor]:
    """Peak memory in bytes over the recorded forward pass, and the leading eigenvalues."""
    command = [sys.executable, "-c", MEASURE, short, str(budget)]
    root = Path(__file__).parents[2]
    freed = {"MALLOC_MMAP_THRESHOLD_": "16384", "MALLOC_TRIM_THRESHOLD_": "0"}  # at once
    env = {**os.environ, **freed}
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=True)
    peak, *values = map(float, done.stdout.split())
    return peak * 2**20, torch.tensor(values, dtype=torch.float64)


@pytest.mark.long
def test_a_quarter_of_the_memory_gives_the_same_and_is_kept() -> None:
    short = "resnet20"
    need, expected = measured(short, 0)
    budget = int(need / 4)
    used, values = measured(short, budget)
    assert used <= budget, (need, budget, used)
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=0)
