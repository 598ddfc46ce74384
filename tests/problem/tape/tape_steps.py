"""Modules with a batch and a loss: the steps of this folder, the zoo, the oracle's networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tape_layers  # noqa: F401  register
import tape_own  # noqa: F401
import torch
import torch.nn.functional as F
from oracle.networks import NETWORKS, Case
from tape_base import STEPS
from torch import Tensor, nn
from zoo import ZOO, build

from lightning_vivit.problem.tape.observer import observe
from lightning_vivit.problem.tape.program import Program


@dataclass
class Subject:
    """A module with a batch and what computes the loss of both."""

    module: nn.Module
    batch: tuple[Any, ...]
    run: Callable[[nn.Module, tuple[Any, ...]], Tensor]
    autocast: bool = False

    def loss(self) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            return self.run(self.module, self.batch)

    def observed(self) -> tuple[Tensor, Program]:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            return observe(lambda *batch: self.run(self.module, batch), self.module, *self.batch)


def _of_outputs(module: nn.Module, batch: tuple[Any, ...]) -> Tensor:
    outputs = module(*batch)
    if outputs.ndim == 2 and outputs.shape[1] > 1:
        return F.cross_entropy(outputs, torch.arange(len(outputs)) % outputs.shape[1])
    return F.mse_loss(outputs, torch.linspace(-1, 1, outputs.numel()).to(outputs).view_as(outputs))


NAMES = [*STEPS, *ZOO, *NETWORKS]


def is_plain(name: str) -> bool:
    """Whether evaluation mode gives the same function whatever was drawn."""
    return STEPS[name].plain if name in STEPS else "spectral" not in name


def subject(name: str) -> Subject:
    """The same one each time, in training mode."""
    if name in STEPS:
        torch.manual_seed(0)
        module = STEPS[name]().train()
        return Subject(module, module.batch(), _of_step, module.autocast)
    if name in ZOO:
        module, inputs = build.__wrapped__(name)
    else:
        case = Case(name)
        module, inputs = case.model, (case.inputs,)
    return Subject(module.train(), inputs, _of_outputs)


def _of_step(module: nn.Module, batch: tuple[Any, ...]) -> Tensor:
    return module.step(batch)


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def gradients(loss: Tensor, module: nn.Module) -> dict[str, Tensor | None]:
    parameters = trainable(module)
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return dict(zip(parameters, found, strict=True))
