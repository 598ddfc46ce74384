"""A plain copy of a module whose parameters FSDP divides among the ranks.

Nothing can be differentiated twice, or in one batched backward pass, through FSDP's hooks, and a
rank holds only a part of each parameter. So at a monitored step all ranks gather the parameters
into a copy of the module as it is then, without FSDP's wrappers, classes and hooks; everything else
works on this copy as with DDP, and it is freed at the end of the step. The copy is made at the step
and not before the strategy divides the module: layers that `setup` or `configure_model` builds are
in it, and so are attributes that the user changes while training.
"""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import nn

from lightning_vivit.errors import ProblemError
from lightning_vivit.parallel.ranks import Ranks
from lightning_vivit.problem.isolation.precision import LOW
from lightning_vivit.problem.isolation.shadow import mend_copy, shared_objects

SHARDED = (FSDPStrategy, ModelParallelStrategy)


class Replica:
    """The gathered copy of a Trainer's module, made once for each monitored step.

    Args:
        trainer: Its strategy is FSDPStrategy or ModelParallelStrategy with fully_shard.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._made: LightningModule | None = None

    @classmethod
    def of(cls, trainer: Trainer) -> Replica | None:
        """The replica of a Trainer; None where every rank holds all parameters anyway."""
        return cls(trainer) if isinstance(trainer.strategy, SHARDED) else None

    @property
    def size(self) -> int:
        """Bytes of the parameters that were gathered; 0 before."""
        return 0 if self._made is None else sum(p.nbytes for p in self._made.parameters())

    def gathered(self, module: LightningModule, ranks: Ranks) -> LightningModule:
        """The copy; all ranks have to ask for it.

        Args:
            module: The module that trains; left exactly as it is.
            ranks: All ranks.

        Returns:
            A module with full parameters on the module's device, on every rank.

        Raises:
            ProblemError: The module cannot be copied.
            PeerError: Another rank failed.
        """
        if self._made is None:
            from lightning_vivit.parallel.gathering import plain_copy, whole_parameters

            with torch.no_grad(), whole_parameters(self._trainer, module, ranks) as memo:
                try:
                    made = plain_copy(module, {**shared_objects(module), **memo})
                except Exception as error:  # whatever a user's attribute raises on deepcopy
                    raise ProblemError(
                        f"{type(module).__name__} cannot be copied ({error}), and under "
                        f"{type(self._trainer.strategy).__name__} a monitor looks at a copy with "
                        "the gathered parameters. Make its attributes copyable, or train with "
                        "strategy='ddp'."
                    ) from error
            mend_copy(made, module)
            _restore_buffers(made, self._trainer)
            self._made = made
        return self._made

    def release(self) -> None:
        """Free the copy."""
        self._made = None


def _restore_buffers(made: nn.Module, trainer: Trainer) -> None:
    """Mixed precision of FSDP casts buffers for good, and parameters only while they are used."""
    config = getattr(trainer.strategy, "mixed_precision_config", None)
    if config is None or config.buffer_dtype not in LOW:
        return
    for child in made.modules():
        for name, buffer in child._buffers.items():
            if buffer is not None and buffer.dtype == config.buffer_dtype:
                child._buffers[name] = buffer.float()
