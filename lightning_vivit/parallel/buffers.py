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
    places: dict[str, tuple[nn.Module, str, Tensor]] = {
        f"{path}.{name}": (child, name, buffer)
        for path, child in module.named_modules()
        for name, buffer in child._buffers.items()
        if buffer is not None
    }
    sums = ranks.exchange({key: _checksum(buffer) for key, (_, _, buffer) in places.items()})
    differing = [
        key for key, value in sums[0].items() if any(each.get(key) != value for each in sums)
    ]
    sent: dict[str, Tensor] = {}
    if differing:
        mine = {key: places[key][2].detach().cpu() for key in differing if ranks.rank == 0}
        sent = ranks.first(mine)
    try:
        for key, value in sent.items():
            if key in places and ranks.rank > 0:
                child, name, buffer = places[key]
                child._buffers[name] = value.to(buffer.device)
        yield
    finally:
        for child, name, buffer in places.values():
            child._buffers[name] = buffer


def _checksum(buffer: Tensor) -> int:
    flat = buffer.detach().cpu().contiguous().reshape(-1)
    return zlib.crc32(flat.view(torch.uint8).numpy().tobytes())
