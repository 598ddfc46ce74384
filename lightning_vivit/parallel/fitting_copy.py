"""Whether a gathered copy of the module fits into the memory budget: asked before training."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy

from lightning_vivit.errors import OptionError
from lightning_vivit.machine.memory import default_budget
from lightning_vivit.parallel.ranks import Ranks
from lightning_vivit.problem.isolation.precision import replay_dtype


def replica_bytes(
    trainer: Trainer, module: LightningModule, chosen: torch.dtype | None, vectors: int
) -> tuple[int, int]:
    """Memory that a monitored step needs on each rank, whatever the number of samples.

    Args:
        trainer: Its strategy divides the parameters.
        module: Before or after that.
        chosen: What the monitor evaluates the module in; None for its own dtype.
        vectors: Vectors of the size of the parameters that the monitor holds.

    Returns:
        Bytes of the gathered parameters, and of what comes on top of them: while they are
        gathered (FSDP holds all of them a second time, fully_shard the largest one), or a
        converted copy and the vectors, whichever is more.
    """
    from lightning_vivit.parallel.gathering import full_sizes

    divided = module if trainer.strategy.model is None else trainer.strategy.model
    sizes = full_sizes(divided)
    each = [count * itemsize for count, itemsize in sizes]
    gathering = each if isinstance(trainer.strategy, FSDPStrategy) else [max(each, default=0)]
    entries = sum(count for count, _ in sizes)
    dtype = replay_dtype(module, chosen)
    widest = (
        max((itemsize for _, itemsize in sizes), default=4) if dtype is None else dtype.itemsize
    )
    evaluation = entries * widest * (vectors + (dtype is not None))
    return sum(each), max(sum(gathering), evaluation)


def check_room(
    name: str, trainer: Trainer, ranks: Ranks, max_memory: int | None, need: tuple[int, int]
) -> None:
    """Refuse a monitor whose copy of the module does not fit; to be called on all ranks.

    Args:
        name: Of the monitor, for the message.
        trainer: Its strategy divides the parameters.
        ranks: All ranks; the smallest budget counts, so that all refuse or none.
        max_memory: The budget in bytes; None for half of what is free on the device.
        need: As `replica_bytes` says.

    Raises:
        OptionError: It does not fit.
    """
    device = trainer.strategy.root_device
    budget = min(ranks.exchange(default_budget(device) if max_memory is None else max_memory))
    copied, more = need
    if copied + more <= budget:
        return
    whose = f"half of what is free on {device}" if max_memory is None else "max_memory"
    raise OptionError(
        f"{name} cannot watch this run. Under {type(trainer.strategy).__name__} it looks at a copy "
        "of the module with the parameters of all ranks. Before the first sample that needs "
        f"{copied + more} bytes on each rank ({copied} for the copy, {more} more while it is "
        f"gathered and evaluated), and the budget is {budget} bytes ({whose}). Pass max_memory="
        f"{copied + more} or more if the device has it, use a smaller k (and overlap=False for "
        "the GGNSpectrumMonitor), or train with strategy='ddp' if the model fits one device. Fewer "
        "samples (max_samples) save only what comes on top of these bytes."
    )
