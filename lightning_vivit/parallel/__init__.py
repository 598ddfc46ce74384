"""One batch over the processes of a DDP run: its kernel is that of one process on all samples."""

from lightning_vivit.parallel.batches import fingerprint, gather_batch, take_part
from lightning_vivit.parallel.buffers import common_buffers
from lightning_vivit.parallel.kernels import shared_kernels
from lightning_vivit.parallel.ranks import PeerError, Ranks
from lightning_vivit.parallel.whole import Part, Whole, join

__all__ = [
    "Part",
    "PeerError",
    "Ranks",
    "Whole",
    "common_buffers",
    "fingerprint",
    "gather_batch",
    "join",
    "shared_kernels",
    "take_part",
]
