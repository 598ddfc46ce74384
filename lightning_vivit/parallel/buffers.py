"""Rank 0's buffers on all ranks, while a monitored step is evaluated.

DDP brings rank 0's buffers (running statistics of batch normalisation) to the others at the start
of its forward pass, so at the start of a training step they differ.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lightning_vivit.parallel.ranks import Ranks


@contextmanager
def common_buffers(module: nn.Module, ranks: Ranks) -> Iterator[None]:
    """Put rank 0's buffers in the place of those that differ, and the own ones back afterwards.

    Args:
        module: The module that trains.
        ranks: All ranks.
    """
    if ranks.size == 1:
        yield
        return
    places = {
        f"{path}.{name}": (child, name)
        for path, child in module.named_modules()
        for name, buffer in child._buffers.items()
        if buffer is not None
    }
    own = {key: child._buffers[name] for key, (child, name) in places.items()}
    sums = {key: _checksum(buffer) for key, buffer in own.items() if buffer is not None}
    everywhere = ranks.exchange(sums)
    differing = [key for key in sums if any(each.get(key) != sums[key] for each in everywhere)]
    differing = sorted(set(differing).union(*ranks.exchange(differing)) & set(everywhere[0]))
    sent: dict[str, Tensor] = {}
    if differing:
        mine = {key: own[key].detach().cpu() for key in differing} if ranks.rank == 0 else {}  # type: ignore[union-attr]
        sent = ranks.first(mine)
    try:
        for key, value in sent.items():
            if key in places and ranks.rank > 0:
                child, name = places[key]
                child._buffers[name] = value.to(child._buffers[name].device)  # type: ignore[union-attr]
        yield
    finally:
        for key, (child, name) in places.items():
            child._buffers[name] = own[key]


def _checksum(buffer: Tensor) -> int:
    flat = buffer.detach().cpu().contiguous().reshape(-1)
    return zlib.crc32(flat.view(torch.uint8).numpy().tobytes())
