"""Replay a LightningModule's training step without touching the run.

The step runs on a shadow: a deep copy that shares the parameters and owns everything else
(buffers, metrics, lists, counters), in eval mode, with logging muted, autocast off, the random
state forked and compiled code forced to eager. A module that cannot be copied is replayed in
place, with its Python state put back afterwards.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_vivit.errors import ProblemError
from lightning_vivit.problem.isolation.precision import converted_copy

COMPILED_METHODS = ("forward", "training_step", "validation_step", "test_step", "predict_step")


@contextmanager
def shadow(module: LightningModule, dtype: torch.dtype | None = None) -> Iterator[LightningModule]:
    """A stand-in for the module that shares its parameters and nothing else.

    Args:
        module: The user's module; left exactly as it is.
        dtype: Convert parameters and buffers to this; they are then not shared.

    Yields:
        The stand-in, in eval mode, with `log` and the loggers muted.

    Raises:
        ProblemError: The module would have to be converted and cannot be copied.
    """
    try:
        stand_in = _copy(module, dtype)
    except Exception as error:  # whatever a user's attribute raises on deepcopy
        if dtype is not None:
            raise ProblemError(
                f"{type(module).__name__} cannot be copied ({error}), so it cannot be evaluated on "
                f"parameters of its own (in {dtype}, or because it writes to its parameters). Make "
                "its attributes copyable, or give an explicit Problem."
            ) from error
        with _in_place(module) as itself:
            yield itself
        return
    _mute(stand_in)
    stand_in.eval()
    yield stand_in


def copy_sharing_parameters(module: nn.Module) -> nn.Module:
    """A deep copy that shares the parameters, in the same mode."""
    memo: dict[int, Any] = {id(parameter): parameter for parameter in module.parameters()}
    return copy.deepcopy(module, memo)


def _copy(module: LightningModule, dtype: torch.dtype | None) -> LightningModule:
    memo = shared_objects(module)
    if dtype is None:
        memo.update((id(parameter), parameter) for parameter in module.parameters())
    copied = converted_copy(module, dtype, memo)
    mend_copy(copied, module)
    return copied


def shared_objects(module: LightningModule) -> dict[int, Any]:
    """What a copy shares with the module, apart from tensors: id -> object, for deepcopy's memo."""
    shared: list[Any] = [module._trainer, module._fabric, getattr(module, "_device_mesh", None)]
    shared += [
        value
        for value in vars(module).values()
        if isinstance(value, (LightningDataModule, Dataset, DataLoader))
    ]
    return {id(value): value for value in shared if value is not None}


def mend_copy(copied: LightningModule, module: LightningModule) -> None:
    """Give a deep copy the trainer, which LightningModule leaves out, and methods of its own."""
    if copied._compiler_ctx is not None:  # torch.compile(module): its methods are the original's
        for name in COMPILED_METHODS:
            vars(copied).pop(name, None)
        copied._compiler_ctx = None
    copied._trainer = module._trainer


def _mute(module: LightningModule) -> None:
    """Swap the class for one whose logging does nothing."""
    kind = type(module)

    def nothing(self: Any, *args: Any, **kwargs: Any) -> None:
        return None

    muted = {
        "log": nothing,
        "log_dict": nothing,
        "print": nothing,
        "logger": property(lambda self: DummyLogger()),
        "loggers": property(lambda self: []),
        "__module__": kind.__module__,
    }
    module.__class__ = type(kind.__name__, (kind,), muted)


@contextmanager
def _in_place(module: LightningModule) -> Iterator[LightningModule]:
    """The module itself, with Python state, buffers and training flags put back afterwards."""
    kind = module.__class__
    states = [(child, _snapshot(child)) for child in module.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
    try:
        _mute(module)
        module.eval()
        yield module
    finally:
        module.__class__ = kind
        for child, state in states:
            vars(child).clear()
            vars(child).update(state)
        with torch.no_grad():
            for buffer, value in buffers:
                if not torch.equal(buffer, value):  # a copy for nothing would spoil live graphs
                    buffer.copy_(value)


def _snapshot(module: nn.Module) -> dict[str, Any]:
    """The attributes of one module, containers copied one level deep."""
    kept: dict[str, Any] = {}
    for name, value in vars(module).items():
        if isinstance(value, Tensor) and value.is_leaf and not isinstance(value, nn.Parameter):
            kept[name] = value.detach().clone().requires_grad_(value.requires_grad)
        elif isinstance(value, (list, dict, set)):
            kept[name] = copy.copy(value)
        else:
            kept[name] = value
    return kept
