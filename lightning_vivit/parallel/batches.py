"""Batches over ranks: the part of a rank, and all parts together."""

from __future__ import annotations

import zlib
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from lightning_vivit.parallel.ranks import Ranks
from lightning_vivit.recording import tensors_in


def fingerprint(batch: Any) -> int:
    """A checksum of all tensors of a batch: equal on ranks that hold the same one."""
    found = 0
    for tensor in tensors_in(batch):
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
    sizes = Counter(tensor.shape[0] for tensor in tensors_in(batch) if tensor.ndim > 0)
    if not sizes:
        return batch, ranks.rank > 0
    size = sizes.most_common(1)[0][0]
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
    parts = ranks.exchange(tree_map(_to_cpu, batch))
    sizes = [Counter(t.shape[0] for t in tensors_in(part) if t.ndim > 0) for part in parts]
    counts = [size.most_common(1)[0][0] if size else -1 for size in sizes]
    leaves = [tree_flatten(part)[0] for part in parts]
    own, spec = tree_flatten(batch)
    joined = []
    for place, leaf in enumerate(own):
        others = [each[place] for each in leaves]
        per_sample = isinstance(leaf, Tensor) and all(
            other.ndim > 0 and other.shape[0] == count
            for other, count in zip(others, counts, strict=True)
        )
        joined.append(torch.cat(others).to(leaf.device) if per_sample else leaf)
    return tree_unflatten(joined, spec)


def _slice(batch: Any, size: int, start: int, stop: int) -> Any:
    def some(value: Any) -> Any:
        per_sample = isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == size
        return value[start:stop] if per_sample else value

    return tree_map(some, batch)


def _to_cpu(value: Any) -> Any:
    return value.detach().cpu() if isinstance(value, Tensor) else value
