"""What the operations do not show is found and named; what they show after all is right."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from lightning.pytorch.utilities.compile import from_compiled
from tape_base import Step
from tape_steps import gradients
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_vivit.problem.tape.check import check
from lightning_vivit.problem.tape.executor import execute, prepared
from lightning_vivit.problem.tape.observer import observe
from lightning_vivit.problem.tape.program import Hole, Program, ProgramError


class Rounded(torch.autograd.Function):
    """A straight-through estimator."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def observed(module: Step) -> tuple[Tensor, Program]:
    torch.manual_seed(0)
    return observe(lambda batch: module.step(batch), module, module.batch())


def holes(module: Step) -> tuple[Hole, ...]:
    loss, program = observed(module)
    return check(program, loss, gradients(loss, module))


def made(step: Callable[[Step, Any], Tensor]) -> Step:
    torch.manual_seed(0)
    return type("Made", (Step,), {"step": step})()


def test_straight_through_estimator() -> None:
    module = made(lambda s, b: F.cross_entropy(s.net[2](Rounded.apply(s.net[0](b[0]))), b[1]))
    (hole,) = holes(module)
    assert hole.kind == "autograd.Function"
    assert "Rounded" in hole.message
    _, program = observed(module)
    with pytest.raises(ProgramError, match="Rounded"):
        execute(prepared(program))


def test_straight_through_estimator_as_the_loss() -> None:
    module = made(lambda s, b: Rounded.apply(s(b[0]).sum()))
    assert [hole.kind for hole in holes(module)] == ["autograd.Function"]


def test_a_function_that_does_not_reach_the_loss() -> None:
    def step(s: Step, b: Any) -> Tensor:
        z = s(b[0])
        Rounded.apply(z).sum()
        torch.func.vmap(torch.sin)(z)
        return F.cross_entropy(z, b[1])

    assert holes(made(step)) == ()


def test_reentrant_checkpoint() -> None:
    def step(s: Step, b: Any) -> Tensor:
        x = b[0].requires_grad_()
        return F.cross_entropy(s.net[2](checkpoint(s.net[0], x, use_reentrant=True)), b[1])

    assert {hole.kind for hole in holes(made(step))} == {"reentrant checkpoint"}


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_hook_on_a_tensor(factor: float) -> None:
    """One that only looks is none."""

    def step(s: Step, b: Any) -> Tensor:
        hidden = s.net[0](b[0])
        hidden.register_hook(lambda grad: grad * factor)
        return F.cross_entropy(s.net[2](hidden), b[1])

    found = holes(made(step))
    assert [hole.kind for hole in found] == ([] if factor == 1 else ["hooks"])
    assert all("gradient of net.0.weight differs" in hole.message for hole in found)


def test_backward_hook_of_a_module() -> None:
    module = made(lambda s, b: F.cross_entropy(s(b[0]), b[1]))
    module.net[1].register_full_backward_hook(lambda *_: None)
    assert {hole.kind for hole in holes(module)} == {"hooks"}


def test_forward_hooks_are_part_of_the_step() -> None:
    module = made(lambda s, b: F.cross_entropy(s(b[0]), b[1]))
    module.net[1].register_forward_hook(lambda m, args, out: out * 2)
    assert holes(module) == ()


def test_hooks_of_parameters_do_not_fire() -> None:
    module = made(lambda s, b: F.cross_entropy(s(b[0]), b[1]))
    fired: list[int] = []
    module.net[0].weight.register_hook(lambda grad: fired.append(1))
    loss, program = observed(module)
    others = {name: g for name, g in gradients(loss, module).items() if name != "net.0.weight"}
    assert len(fired) == 1
    assert check(program, loss, others) == ()
    assert len(fired) == 1


def test_transformation_of_torch_func() -> None:
    def step(s: Step, b: Any) -> Tensor:
        z = torch.func.vmap(lambda x: torch.tanh(x @ s.net[0].weight.T))(b[0])
        return F.cross_entropy(s.net[2](z), b[1])

    assert {hole.kind for hole in holes(made(step))} == {"torch.func"}


def test_scripted_function() -> None:
    class Scripted(Step):
        def build(self) -> None:
            super().build()
            self.inner = torch.jit.script(nn.Linear(8, 8))

        def step(self, batch: Any) -> Tensor:
            return F.cross_entropy(self.net[2](self.inner(self.net[0](batch[0]))), batch[1])

    (hole,) = holes(Scripted())
    assert hole.kind == "TorchScript"
    assert "inner" in hole.message


@torch.jit.script
def move_(statistics: Tensor, x: Tensor) -> Tensor:
    return statistics.mul_(0.9).add_(x.mean(), alpha=0.1)


def test_buffer_that_unseen_code_changes() -> None:
    class Moved(Step):
        def build(self) -> None:
            super().build()
            self.register_buffer("center", torch.ones(()))

        def step(self, batch: Any) -> Tensor:
            loss = F.cross_entropy(self(batch[0] - self.center), batch[1])
            move_(self.center, batch[0])
            return loss

    (hole,) = holes(Moved())
    assert hole.kind == "unseen write"
    assert "center" in hole.message


def test_numbers_that_numpy_changes() -> None:
    def step(s: Step, b: Any) -> Tensor:
        z = s(b[0])
        b[0].numpy()[:] = 0
        return F.cross_entropy(z, b[1])

    (hole,) = holes(made(step))
    assert hole.kind == "unknown"
    assert "loss is" in hole.message


def test_weights_without_memory() -> None:
    """As those of FSDP after their use."""

    def step(s: Step, b: Any) -> Tensor:
        return s(b[0]).sum()

    module = made(step)
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    module.net[0].bias.requires_grad_()
    loss, program = observed(module)
    module.net[2].weight.untyped_storage().resize_(0)
    (hole,) = check(program, loss)
    assert hole.kind == "empty storage"
    assert "net.2.weight" in hole.message
    with pytest.raises(ProgramError, match=r"net\.2\.weight"):
        execute(prepared(program))


def compiled(module: Step, how: str, calls: list[int]) -> Step:
    def backend(graph: Any, inputs: Any) -> Any:
        calls.append(1)
        return graph.forward

    torch._dynamo.reset()
    if how == "wrapped":
        module.net = torch.compile(module.net, backend=backend)
    else:
        module.net.compile(backend=backend)
    return module


@pytest.mark.parametrize("how", ["wrapped", "in place"])
def test_compiled_modules(how: str) -> None:
    """Not compiled again for the observer, bitwise the same, and a hole that is named."""
    calls: list[int] = []
    module = compiled(made(lambda s, b: F.cross_entropy(s(b[0]), b[1])), how, calls)
    other = compiled(copy.deepcopy(made(lambda s, b: F.cross_entropy(s(b[0]), b[1]))), how, [])
    batch = module.batch()
    module.step(batch).backward()
    other.step(batch).backward()
    once = len(calls)
    for _ in range(2):
        loss, program = observe(module.step, module, batch)
        assert torch.equal(loss, other.step(batch))
        assert {hole.kind for hole in check(program, loss)} == {"compiled code"}
    module.step(batch)
    assert len(calls) == once > 0
    attributes = vars(module.net)
    assert ("forward" in attributes) == (how == "wrapped")


def test_compiled_lightning_module() -> None:
    class Whole(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(4, 3)

        def training_step(self, batch: Tensor) -> Tensor:
            return self.net(batch).sum()

    module = from_compiled(torch.compile(Whole(), backend="eager"))
    loss, program = observe(module.training_step, module, torch.randn(2, 4))
    assert [hole.kind for hole in check(program, loss)] == ["compiled code"]


def test_what_a_step_returns() -> None:
    def step(s: Step, b: Any) -> Any:
        z = s(b[0])
        return {"loss": F.cross_entropy(z, b[1]), "logits": z, "hidden": Rounded.apply(z)}

    module = made(step)
    returned, program = observed(module)
    assert check(program, returned["loss"], gradients(returned["loss"], module)) == ()
    returned, program = observed(made(lambda s, b: None))
    assert returned is None
    assert [hole.kind for hole in check(program, torch.zeros(()))] == ["no loss"]


@pytest.fixture
def group(tmp_path: Path) -> Any:
    dist.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_collectives_are_constants(group: None) -> None:
    """They are not run again: other processes would not take part."""

    def step(s: Step, b: Any) -> Tensor:
        z = s(b[0])
        mean = z.detach().mean(0)
        dist.all_reduce(mean)
        return F.cross_entropy(z - mean, b[1])

    module = made(step)
    loss, program = observed(module)
    assert check(program, loss, gradients(loss, module)) == ()
    modules = {getattr(each.function, "__module__", "") or "" for each in program.operations}
    assert not any(name.startswith("torch.distributed") for name in modules)
