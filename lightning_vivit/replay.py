"""Replay a LightningModule's training step without touching the run.

The step runs on a shadow: a deep copy that shares the parameters and owns everything else
(buffers, metrics, lists, counters), in eval mode, with logging muted, autocast off, the random
state forked and compiled code forced to eager. A module that cannot be copied is replayed in
place, with its Python state put back afterwards.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, Dataset

from lightning_vivit.errors import ProblemError
from lightning_vivit.precision import converted_copy
from lightning_vivit.rng import isolated_rng

COMPILED_METHODS = ("forward", "training_step", "validation_step", "test_step", "predict_step")


@contextmanager
def quiet_numerics() -> Iterator[None]:
    """Gradients on, autocast, inference mode and TF32 off, compiled code eager, RNG put back."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    tf32 = matmul.allow_tf32, cudnn.allow_tf32
    with ExitStack() as stack:
        stack.enter_context(isolated_rng())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device in ("cpu", "cuda"):
            if device == "cpu" or _has_cuda():
                stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(eager_code())
        try:
            matmul.allow_tf32 = cudnn.allow_tf32 = False
            yield
        finally:
            matmul.allow_tf32, cudnn.allow_tf32 = tf32


@cache
def _has_cuda() -> bool:
    return torch.cuda.is_available()


@contextmanager
def eager_code() -> Iterator[None]:
    """Run compiled modules eagerly, so that their operations are seen."""
    if torch.compiler.is_compiling():
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def check_replayable(module: LightningModule) -> None:
    """Refuse modules whose training step cannot be replayed.

    Args:
        module: The user's module.

    Raises:
        ProblemError: Manual optimization, or a step that takes the data iterator.
    """
    if not isinstance(module, LightningModule):
        raise ProblemError(
            f"Got a {type(module).__module__}.{type(module).__name__}, expected a "
            "lightning.pytorch.LightningModule (a module of the pytorch_lightning namespace is "
            "another class). Import lightning.pytorch, or give an explicit "
            "Problem(model, loss, inputs, targets)."
        )
    if not module.automatic_optimization:
        raise ProblemError(
            f"{type(module).__name__} uses manual optimization: replaying its training_step "
            "would step its optimizers. Supported: automatic optimization, or an explicit "
            "problem. Pass problem=lambda module, batch: Problem(module.net, loss, inputs, "
            "targets) to the monitor."
        )
    if "dataloader_iter" in inspect.signature(module.training_step).parameters:
        raise ProblemError(
            f"{type(module).__name__}.training_step takes dataloader_iter, so there is no batch "
            "to replay it on. Give a probe batch with an explicit "
            "Problem(model, loss, inputs, targets)."
        )


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


def run_training_step(module: LightningModule, batch: Any, batch_idx: int) -> Any:
    """Call training_step with the arguments that it takes.

    Args:
        module: The stand-in.
        batch: The batch.
        batch_idx: Index of the batch.

    Returns:
        What training_step returned.
    """
    available = {"batch_idx": batch_idx, "dataloader_idx": 0}
    parameters = list(inspect.signature(module.training_step).parameters.values())
    kwargs = {p.name: available[p.name] for p in parameters[1:] if p.name in available}
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if any(p.kind is p.VAR_POSITIONAL for p in parameters) and not kwargs:
        return module.training_step(batch, batch_idx)
    if len(positional) == 2 and not kwargs:
        return module.training_step(batch, batch_idx)
    return module.training_step(batch, **kwargs)


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
