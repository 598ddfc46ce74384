"""One batch over the processes of a run: its kernel is that of one process on all samples."""

from lightning_vivit.parallel.batches import gather_batch, take_part
from lightning_vivit.parallel.buffers import common_buffers
from lightning_vivit.parallel.fitting_copy import check_room, replica_bytes
from lightning_vivit.parallel.kernels import shared_kernels
from lightning_vivit.parallel.ranks import PeerError, Ranks
from lightning_vivit.parallel.replica import SHARDED, Replica
from lightning_vivit.parallel.whole import Part, Whole, join

__all__ = [
    "SHARDED",
    "Part",
    "PeerError",
    "Ranks",
    "Replica",
    "Whole",
    "check_room",
    "common_buffers",
    "gather_batch",
    "join",
    "replica_bytes",
    "shared_kernels",
    "take_part",
]
