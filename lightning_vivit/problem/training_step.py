"""Call a LightningModule's training step as the Trainer does."""

from __future__ import annotations

import inspect
from typing import Any

from lightning.pytorch import LightningModule

from lightning_vivit.errors import ProblemError


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
