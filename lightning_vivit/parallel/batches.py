"""Batches over ranks: the part of a rank, and all parts together."""

from __future__ import annotations

import zlib
from collections import Counter
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from lightning_vivit.parallel.ranks import Ranks


def fingerprint(batch: Any) -> int:
    """A checksum of all tensors of a batch: equal on ranks that hold the same one."""
    found = 0
    for tensor in tensors(batch):
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        found = zlib.crc32(flat.view(torch.uint8).numpy().tobytes(), found)
    return found


def take_part(batch: Any, ranks: Ranks) -> tuple[Any, bool]:
    """The contiguous part of a batch that all ranks hold.

    Args:
        batch: The same on all ranks.
        ranks: All ranks.

    Returns:
        The rank's part, and whether it has none: then the batch's first sample stands in for it,
        so that the rank knows the shapes.
    """
    size = _size(batch)
    if size is None:
        return batch, ranks.rank > 0
    start, stop = (size * place // ranks.size for place in (ranks.rank, ranks.rank + 1))
    if start == stop:
        return _slice(batch, size, 0, 1), True
    return _slice(batch, size, start, stop), False


def gather_batch(batch: Any, ranks: Ranks) -> Any:
    """The parts of all ranks, one after the other.

    Args:
        batch: This rank's part; the same structure on all ranks. Tensors are joined along their
            first axis if it has the size of the part; everything else is kept as it is here.
        ranks: All ranks.

    Returns:
        The whole batch on the device of the part.
    """
    parts = ranks.exchange([tensor.detach().cpu() for tensor in tensors(batch)])
    sizes = [_size(part) for part in parts]
    remaining = iter(range(len(parts[0])))

    def join(tensor: Tensor) -> Tensor:
        place = next(remaining)
        found = [part[place] for part in parts]
        per_sample = all(
            part.ndim > 0 and part.shape[0] == size for part, size in zip(found, sizes, strict=True)
        )
        return torch.cat(found).to(tensor.device) if per_sample else tensor

    return apply_to_collection(batch, Tensor, join)


def tensors(batch: Any) -> list[Tensor]:
    """Every tensor of a nested batch (also in dataclasses and mappings of any kind), in order."""
    found: list[Tensor] = []

    def collect(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    apply_to_collection(batch, Tensor, collect)
    return found


def _size(batch: Any) -> int | None:
    """The most frequent first dimension; None without a tensor that has one."""
    sizes = Counter(tensor.shape[0] for tensor in tensors(batch) if tensor.ndim > 0)
    return sizes.most_common(1)[0][0] if sizes else None


def _slice(batch: Any, size: int, start: int, stop: int) -> Any:
    def some(tensor: Tensor) -> Tensor:
        return tensor[start:stop] if tensor.ndim > 0 and tensor.shape[0] == size else tensor

    return apply_to_collection(batch, Tensor, some)
