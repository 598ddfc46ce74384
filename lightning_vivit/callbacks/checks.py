"""What can be checked before training starts, all problems in one message."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    ModelParallelStrategy,
    ParallelStrategy,
)
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature

from lightning_vivit.errors import OptionError
from lightning_vivit.parallel import SHARDED


def check_setup(
    name: str,
    trainer: Trainer,
    module: LightningModule,
    *,
    has_problem: bool,
    uses_batch: bool,
    first: bool,
) -> None:
    """Refuse what cannot work, and say once if nothing will be written.

    Args:
        name: Of the monitor, for messages.
        trainer: The Trainer.
        module: Its module.
        has_problem: Whether the monitor has an explicit problem.
        uses_batch: Whether the monitor looks at the current training batch.
        first: Whether this is the first monitor of the Trainer; only it warns.

    Raises:
        OptionError: With everything that is wrong.
    """
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
        if uses_batch:
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
        rank_zero_warn(
            f"{name} has no logger to write to (Trainer(logger=False)): its values are only in "
            "trainer.callback_metrics. Use logger=True to see them in TensorBoard.",
            category=UserWarning,
        )
