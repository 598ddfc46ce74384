"""The learning rate that meets the curvature of a parameter group."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from lightning_vivit.metrics.functional import stability_limit
from lightning_vivit.problem.groups import plain_name


def learning_rate_and_momentum(
    trainer: Trainer, module: LightningModule, names: Iterable[str]
) -> tuple[float, float] | None:
    """The setting closest to divergence among the optimizers' groups that hold the parameters.

    Args:
        trainer: Its optimizers are looked at.
        module: Gives the parameters their names.
        names: The parameters of the group; if none of them is the module's, all are meant.

    Returns:
        Learning rate and momentum of an equivalent heavy-ball step, or None if no optimizer has a
        learning rate.
    """
    by_name = {plain_name(name): p for name, p in module.named_parameters()}
    wanted = {id(by_name[name]) for name in names if name in by_name}
    found = []
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups:
            if "lr" in group and (not wanted or any(id(p) in wanted for p in group["params"])):
                found.append(heavy_ball(group))
    return max(found, key=lambda pair: pair[0] / float(stability_limit(pair[1])), default=None)


def heavy_ball(group: Mapping[str, Any]) -> tuple[float, float]:
    """Learning rate and momentum of the heavy-ball step with the same limit on a quadratic.

    Dampening d scales each gradient by 1 - d. Nesterov's momentum m diverges at sharpness times
    learning rate 2 (1 + m) / (1 + 2 m). Adam's first moment is momentum beta_1 with dampening
    beta_1; its division by the second moment is left out.
    """
    rate = float(group["lr"])
    if "betas" in group:
        momentum = float(group["betas"][0])
        return rate * (1 - momentum), momentum
    momentum = float(group.get("momentum") or 0.0)
    if momentum > 0 and group.get("nesterov"):
        return rate * (1 + 2 * momentum), momentum
    return rate * (1 - float(group.get("dampening") or 0.0) * (momentum > 0)), momentum
