"""Memory of a device: how much is free, and how much of it may be used."""

from __future__ import annotations

from pathlib import Path

import torch

_FRACTION = 0.5  # of the free memory, if no budget is given


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device.

    Args:
        device: CPU or CUDA.

    Returns:
        Bytes; on a system that does not tell, 4 GiB.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 4 << 30


def default_budget(device: torch.device) -> int:
    """Half of the free memory."""
    return int(free_memory(device) * _FRACTION)
