"""A plain copy of a module whose parameters FSDP divides among the ranks.

Nothing can be differentiated twice, or in one batched backward pass, through FSDP's hooks, and a
rank holds only a part of each parameter. So at a monitored step all ranks gather the parameters
into a copy of the module as it is then, without FSDP's wrappers, classes and hooks; everything else
works on this copy as with DDP, and it is freed at the end of the step. The copy is made at the step
and not before the strategy divides the module: layers that `setup` or `configure_model` builds are
in it, and so are attributes that the user changes while training.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.distributed.tensor import DTensor

from lightning_vivit.errors import ProblemError
from lightning_vivit.parallel.ranks import Ranks
from lightning_vivit.precision import LOW
from lightning_vivit.replay import mend_copy, shared_objects

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
            with torch.no_grad(), _whole(self._trainer, module, ranks) as memo:
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


def plain_copy(module: nn.Module, memo: dict[int, Any]) -> Any:
    """A deep copy without FSDP's wrappers, classes, hooks and states.

    Args:
        module: May be wrapped by FSDP or passed to `fully_shard`, in any of its parts.
        memo: id -> what stands in the copy for that object.

    Returns:
        The copy; of the classes that the user wrote.
    """
    emptied: list[tuple[nn.Module, nn.Module]] = []
    for child in module.modules():
        if isinstance(child, (FSDPModule, FullyShardedDataParallel)):
            inner = child.module if isinstance(child, FullyShardedDataParallel) else child
            if id(inner) not in memo:
                kind = next(k for k in type(inner).__mro__ if not issubclass(k, FSDPModule))
                memo[id(inner)] = kind.__new__(kind)
                emptied.append((inner, memo[id(inner)]))
            memo[id(child)] = memo[id(inner)]
    for inner, shell in emptied:
        state = inner.__reduce_ex__(4)[2]
        assert isinstance(state, dict)
        shell.__setstate__(copy.deepcopy(_without_fsdp(state), memo))
    return copy.deepcopy(module, memo)


def _without_fsdp(state: dict[str, Any]) -> dict[str, Any]:
    """The attributes of a module that FSDP did not put there."""
    kept = {}
    for name, value in state.items():
        if name.startswith("__composable_api") or _is_distributed(value):
            continue
        if name.endswith("_hooks") and isinstance(value, dict):
            value = type(value)((i, hook) for i, hook in value.items() if not _is_distributed(hook))
        kept[name] = value
    return kept


def _is_distributed(value: Any) -> bool:
    """Whether a hook or method is one that torch.distributed made."""
    value = getattr(value, "hook", value)
    code: Callable[..., Any] | None = getattr(value, "__func__", value)
    names = getattr(code, "__globals__", {}).get("__name__"), getattr(code, "__module__", None)
    return callable(code) and any(str(name).startswith("torch.distributed") for name in names)


@contextmanager
def _whole(trainer: Trainer, module: LightningModule, ranks: Ranks) -> Iterator[dict[int, Any]]:
    """The full parameters that stand for the divided ones: id -> new parameter.

    FSDP's own parameters have their full shapes inside, which is where the copy has to be made.
    """
    device = module.device
    if isinstance(trainer.strategy, FSDPStrategy):
        whole = trainer.strategy.model
        assert whole is not None
        _ready(ranks, 2 * sum(count * size for count, size in full_sizes(whole)), device)
        with FullyShardedDataParallel.summon_full_params(whole, writeback=False):
            yield {
                id(p): _parameter(p, p.detach().to(device, copy=True)) for p in module.parameters()
            }
        return
    for child in module.modules():
        if isinstance(child, FSDPModule):
            child.reshard()  # after a validation step it may hold the whole, as state_dict() finds
    sharded = [p for p in module.parameters() if isinstance(p, DTensor)]
    memo = {
        id(p): _parameter(p, torch.empty(p.shape, dtype=p.dtype, device=device)) for p in sharded
    }
    memo.update((id(p), p) for p in module.parameters() if not isinstance(p, DTensor))
    _ready(ranks, 2 * max((p.numel() * p.itemsize for p in sharded), default=0), device)
    for parameter in sharded:
        there: Any = parameter.detach().to(device)
        memo[id(parameter)].copy_(there.full_tensor())
    yield memo


def _restore_buffers(made: nn.Module, trainer: Trainer) -> None:
    """Mixed precision of FSDP casts buffers for good, and parameters only while they are used."""
    config = getattr(trainer.strategy, "mixed_precision_config", None)
    if config is None or config.buffer_dtype not in LOW:
        return
    for child in made.modules():
        for name, buffer in child._buffers.items():
            if buffer is not None and buffer.dtype == config.buffer_dtype:
                child._buffers[name] = buffer.float()


def _parameter(like: Tensor, value: Tensor) -> nn.Parameter:
    return nn.Parameter(value, requires_grad=like.requires_grad)


def _ready(ranks: Ranks, size: int, device: torch.device) -> None:
    """All ranks have the memory for what comes, or nobody starts: the others would wait."""
    torch.empty(size, dtype=torch.uint8, device=device)
    ranks.exchange()


def full_sizes(module: nn.Module) -> list[tuple[int, int]]:
    """Entries and bytes of an entry of every parameter, also where a rank holds a part of it.

    Args:
        module: Before or after a strategy divided its parameters.
    """
    found = [
        (parameter.numel(), parameter.itemsize)
        for parameter in module.parameters()
        if not getattr(parameter, "_fsdp_flattened", False) and not hasattr(parameter, "_shapes")
    ]
    for child in FullyShardedDataParallel.fsdp_modules(module):
        flat: Any = child._flat_param
        if flat is not None:
            found += [(shape.numel(), flat.itemsize) for shape in flat._shapes]
    return found
