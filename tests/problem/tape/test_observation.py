"""Observing a step changes nothing, and the program that comes out of it is the step."""

from __future__ import annotations

import random
import threading

import numpy as np
import pytest
import torch
from tape_base import STEPS
from tape_steps import NAMES, gradients, is_plain, subject, trainable
from torch import Tensor, nn

from lightning_vivit.problem.isolation.numerics import default_dtype
from lightning_vivit.problem.tape.check import check
from lightning_vivit.problem.tape.executor import execute, leaves, prepared
from lightning_vivit.problem.tape.observer import observe

# What Python does not see of these networks, and its name.
HOLES = {
    "scripted_submodule": "TorchScript",
    "traced_submodule": "TorchScript",
    "ensemble_by_vmap": "torch.func",
    "custom_autograd_function": "autograd.Function",
}
WHOLE = [name for name in NAMES if name not in HOLES]


def everything(module: nn.Module) -> list[object]:
    """Weights, buffers, gradients and all random states."""
    found: list[object] = [tensor.clone() for tensor in module.state_dict().values()]
    found += [None if p.grad is None else p.grad.clone() for p in module.parameters()]
    found += [torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()]
    generator = getattr(module, "generator", None)
    return [*found, None if generator is None else generator.get_state()]


def same(left: object, right: object) -> bool:
    if isinstance(left, Tensor):
        if left.is_sparse:
            left, right = left.to_dense(), right.to_dense()
        return torch.equal(left, right)
    return np.array_equal(left, right) if isinstance(left, np.ndarray) else left == right


def train(name: str, observed: bool, steps: int = 3) -> list[list[object]]:
    found = subject(name)
    optimizer = torch.optim.SGD(found.module.parameters(), lr=0.05, momentum=0.9)
    torch.manual_seed(1)
    history = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = found.observed()[0] if observed else found.loss()
        loss.backward()
        history.append([loss.detach().clone(), *everything(found.module)])
        optimizer.step()
        history.append(everything(found.module))
    return history


@pytest.mark.parametrize("name", NAMES)
def test_observing_changes_nothing(name: str) -> None:
    if HOLES.get(name) == "TorchScript":
        train(name, False)  # it optimizes its code in the first passes, and the last bits change
    for plain, observed in zip(train(name, False), train(name, True), strict=True):
        assert len(plain) == len(observed)
        assert all(map(same, plain, observed))


@pytest.mark.parametrize("name", WHOLE)
def test_the_program_is_the_step(name: str) -> None:
    """In training form, loss and gradients bitwise, with other random numbers in between."""
    found = subject(name)
    torch.manual_seed(2)
    for _ in range(2):
        loss, program = found.observed()
        torch.rand(3)
        before = everything(found.module)
        assert check(program, loss, gradients(loss, found.module)) == ()
        assert all(map(same, before, everything(found.module)))
        assert check(program, loss + 1e-6) != ()  # and it would be seen


@pytest.mark.parametrize("name", sorted(HOLES))
def test_holes_of_networks_are_named(name: str) -> None:
    found = subject(name)
    loss, program = found.observed()
    assert {hole.kind for hole in check(program, loss)} == {HOLES[name]}


@pytest.mark.parametrize("name", [name for name in WHOLE if is_plain(name)])
def test_evaluation_form_is_evaluation_mode(name: str) -> None:
    found, other = subject(name), subject(name)
    torch.manual_seed(3)
    found.loss()  # statistics off their start
    torch.manual_seed(3)
    other.loss()
    _, program = found.observed()
    other.module.eval()
    loss = other.loss()
    made = prepared(program, form="eval")
    parameters = leaves(made)
    again = execute(made, parameters)
    assert torch.equal(again, loss)
    wanted = {name: p for name, p in parameters.items() if p.requires_grad}
    grads = torch.autograd.grad(again, list(wanted.values()), allow_unused=True)
    expected = gradients(loss, other.module)
    for key, grad in zip(wanted, grads, strict=True):
        assert same(grad, expected[key])


# What is frozen: numbers of numpy, the values of a new layer, how many random numbers are drawn.
DEPENDENT = ("OutsideNumbers", "Grows", "RandomSlopes")


@pytest.mark.parametrize("name", [name for name in WHOLE if name not in DEPENDENT])
def test_other_parameters(name: str) -> None:
    """The program at other parameters is the step at these parameters, draws included."""
    found, other = subject(name), subject(name)
    torch.manual_seed(4)
    _, program = found.observed()
    made = prepared(program)
    values = {}
    with torch.no_grad():
        for key, parameter in trainable(other.module).items():
            parameter.mul_(0.9).add_(0.01)
            values[key] = parameter.detach().clone().requires_grad_()
    torch.manual_seed(4)
    loss = other.loss()
    again = execute(made, values)
    assert torch.equal(again, loss)
    grads = torch.autograd.grad(again, list(values.values()), allow_unused=True)
    expected = gradients(loss, other.module)
    for key, grad in zip(values, grads, strict=True):
        assert same(grad, expected[key])


@pytest.mark.parametrize("name", STEPS)
def test_double_precision(name: str) -> None:
    found, other = subject(name), subject(name)
    loss, program = found.observed()
    again = execute(prepared(program, dtype=torch.float64))
    assert again.dtype == torch.float64
    tolerance = 3e-2 if found.autocast else 1e-4
    torch.testing.assert_close(again, loss.double(), rtol=tolerance, atol=tolerance)
    if not is_plain(name):
        return
    again = execute(prepared(program, form="eval", dtype=torch.float64))
    other.module.double().eval()
    other.batch = tuple(t.double() if t.is_floating_point() else t for t in other.batch)
    other.autocast = False
    with default_dtype(torch.float64):
        torch.testing.assert_close(again, other.loss(), rtol=1e-12, atol=1e-13)


def test_other_threads_are_not_recorded() -> None:
    net = nn.Linear(3, 3)
    x = torch.randn(2, 3)
    seen: list[Tensor] = []

    def step() -> Tensor:
        other = threading.Thread(target=lambda: seen.append(net(x).exp()))
        other.start()
        other.join()
        return net(x).sum()

    _, program = observe(step, net)
    assert len(seen) == 1
    assert [operation.name for operation in program.operations] == ["linear", "sum"]


def test_what_the_step_raises_goes_through() -> None:
    net = nn.Linear(3, 3)
    with pytest.raises(ZeroDivisionError):
        observe(lambda: 1 / 0, net)
    assert torch.overrides._get_current_function_mode() is None


def test_a_failing_recorder_is_a_hole(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_vivit.problem.tape.observer import Observer

    def fail(*_: object) -> None:
        raise KeyError("broken")

    found = subject("Normalised")
    monkeypatch.setattr(Observer, "_outside", fail)
    loss, program = found.observed()
    loss.backward()
    assert [hole.kind for hole in check(program, loss)] == ["recorder"]
