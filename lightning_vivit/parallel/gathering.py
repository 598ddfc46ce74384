"""Parameters that FSDP divides among the ranks: their full sizes, values, and a module with them.

FSDP1 (FullyShardedDataParallel) puts modules into wrappers and flattens their parameters. FSDP2
(fully_shard) changes the classes of modules, gives them hooks, and makes DTensors of the
parameters. This file alone imports them: it is read only where a strategy uses them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.distributed.tensor import DTensor

from lightning_vivit.parallel.ranks import Ranks


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
        method = isinstance(value, MethodType)  # see register_fsdp_forward_method
        if name.startswith("__composable_api") or (method and _is_distributed(value)):
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
def whole_parameters(
    trainer: Trainer, module: LightningModule, ranks: Ranks
) -> Iterator[dict[int, Any]]:
    """Gather the parameters of all ranks.

    Args:
        trainer: Its strategy is FSDPStrategy or ModelParallelStrategy.
        module: The module that trains.
        ranks: All ranks.

    Yields:
        The memo of a copy: id of each parameter -> the full one that stands for it, on the module's
        device. The copy has to be made inside: FSDP's parameters have their names and shapes there.

    Raises:
        PeerError: Another rank failed.
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
