"""What can be checked before training starts, all problems in one message."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    ModelParallelStrategy,
    ParallelStrategy,
)
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature

from lightning_vivit.callbacks.failures import warn
from lightning_vivit.callbacks.measurement import Measurement
from lightning_vivit.errors import OptionError
from lightning_vivit.parallel import SHARDED


def check_setup(
    monitor: Measurement, trainer: Trainer, module: LightningModule, first: bool
) -> None:
    """Refuse what cannot work, and say once if nothing will be written.

    Args:
        monitor: The monitor that is to watch the run.
        trainer: The Trainer.
        module: Its module.
        first: Whether this is the first monitor of the Trainer; only it warns.

    Raises:
        OptionError: With everything that is wrong.
    """
    name, has_problem = type(monitor).__name__, monitor.settings.problem is not None
    if not isinstance(module, LightningModule):
        raise OptionError(
            f"{name} got a {type(module).__module__}.{type(module).__qualname__}, which is no "
            "lightning.pytorch.LightningModule. Write `import lightning.pytorch as pl` in place of "
            "`import pytorch_lightning as pl`, for the module and the Trainer."
        )
    found = []
    if not has_problem and not module.automatic_optimization:
        found.append(
            f"{type(module).__name__} uses manual optimization, so its training_step cannot be "
            "replayed. Pass problem=lambda module, batch: Problem(model, loss, inputs, targets)."
        )
    if is_param_in_hook_signature(module.training_step, "dataloader_iter", explicit=True):
        if not has_problem:
            found.append(
                f"{type(module).__name__}.training_step takes a dataloader_iter, so it cannot be "
                "replayed on a batch. Pass problem=lambda module, batch: Problem(...)."
            )
        if monitor.source.data == "batch":
            found.append(
                "With a dataloader_iter there is no batch at the start of a step. Use "
                "data='train', data='val' or a probe."
            )
    strategy = trainer.strategy
    known = isinstance(strategy, (DDPStrategy, *SHARDED))
    if isinstance(strategy, ParallelStrategy) and (
        not known or isinstance(strategy, DeepSpeedStrategy)
    ):
        found.append(
            f"{type(strategy).__name__} is not supported: it divides the parameters, and a rank "
            "needs all of them. Supported: a single device, DDP (strategy='ddp', 'ddp_spawn', "
            "'ddp_fork', 'ddp_notebook', with their options), FSDP (strategy='fsdp') and FSDP2 "
            "(ModelParallelStrategy with fully_shard)."
        )
    if isinstance(strategy, ModelParallelStrategy) and strategy._tensor_parallel_size != 1:
        found.append(
            f"ModelParallelStrategy(tensor_parallel_size={strategy._tensor_parallel_size}) is not "
            "supported: tensor parallelism divides the layers' arithmetic, not only their "
            "parameters. Use ModelParallelStrategy(data_parallel_size=..., tensor_parallel_size=1) "
            "with fully_shard, or DDP."
        )
    if found:
        raise OptionError(f"{name} cannot watch this run. " + " ".join(found))
    quick = bool(getattr(trainer, "fast_dev_run", False))  # has no loggers on purpose
    if first and not trainer.loggers and not quick:
        warn(
            f"{name} has no logger to write to (Trainer(logger=False)): its values are only in "
            "trainer.callback_metrics. Use logger=True to see them in TensorBoard.",
            category=UserWarning,
        )


def check_keys(monitors: Sequence[Measurement]) -> None:
    """Refuse two monitors of a kind that would write the same keys at the same step.

    Raises:
        OptionError: It names the option that tells them apart.
    """
    for one, other in combinations(monitors, 2):
        same = type(one) is type(other) and one.path == other.path
        groups = one.settings.param_groups == other.settings.param_groups
        if same and groups and one.schedule.meets(other.schedule):
            raise OptionError(
                f"The Trainer has two {type(one).__name__} that write the same keys, "
                f"'{one.path}/...', at the same step. Give one of them a prefix, such as "
                f"{type(one).__name__}(prefix='second/'), or other steps."
            )
