"""The processes of a distributed run, and how they agree.

Every message goes through one kind of collective, `Ranks.exchange`, in which each rank also says
whether it failed. A rank that fails calls `spread`; all others learn of it in whichever exchange
they wait, and end the monitored step too. After an exchange in which somebody failed no rank
exchanges again until the next monitor's turn, so that no rank waits for another. Tensors move
(`rotate`, `add_up`) only right after an exchange that everybody passed, and nothing in between may
raise.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor

from lightning_vivit.errors import ViViTError


class PeerError(ViViTError):
    """Another rank failed; the message names it and the cause."""


@dataclass(frozen=True)
class _Failure:
    cause: str


class Ranks:
    """All processes of a run, seen from one of them. A run of one process costs nothing.

    Args:
        rank: Of this process.
        size: Number of processes.
        group: For objects, on the CPU.
    """

    def __init__(
        self, rank: int = 0, size: int = 1, group: dist.ProcessGroup | None = None
    ) -> None:
        self.rank = rank
        self.size = size
        self.sent = 0  # bytes of tensors that this process sent, for measurements
        self._group = group
        self._told: list[BaseException] = []

    @classmethod
    def of(cls, trainer: Trainer) -> Ranks:
        """The processes of a Trainer; to be called on all of them, after they were launched."""
        strategy = trainer.strategy
        ready = dist.is_available() and dist.is_initialized()
        if not isinstance(strategy, ParallelStrategy) or strategy.world_size == 1 or not ready:
            return cls()
        return cls(strategy.global_rank, strategy.world_size, _control_group())

    def exchange(self, value: Any = None) -> list[Any]:
        """What each rank gave, by rank.

        Args:
            value: Anything that pickles; tensors on the CPU.

        Raises:
            PeerError: If a rank failed.
        """
        if self.size == 1:
            return [value]
        found = self._gather(value)
        causes = [
            f"Rank {rank} failed: {item.cause}"
            for rank, item in enumerate(found)
            if isinstance(item, _Failure)
        ]
        if causes:
            raise PeerError(causes[0])
        return found

    def first(self, value: Any) -> Any:
        """What rank 0 gave; the others' values are not sent.

        Raises:
            PeerError: If a rank failed.
        """
        if self.size == 1:
            return value
        self.exchange()
        box = [value if self.rank == 0 else None]
        dist.broadcast_object_list(box, src=0, group=self._group)
        return box[0]

    def spread(self, error: Exception) -> Exception:
        """Let the others know that this rank failed; returns the error.

        An error that came from them, or that they know already, is not spread again.
        """
        known = isinstance(error, PeerError) or any(error is told for told in self._told)
        if self.size == 1 or known:
            return error
        self._told.append(error)
        cause = str(error) if isinstance(error, ViViTError) else f"{type(error).__name__}: {error}"
        with suppress(RuntimeError):  # the others may be gone: the first cause is what counts
            self._gather(_Failure(cause))
        return error

    def end_step(self) -> None:
        """Forget the errors that were spread."""
        self._told.clear()

    def rotate(self, outgoing: Tensor, incoming: Tensor, shift: int) -> None:
        """Send bytes to the rank `shift` places after this one, receive from as far before.

        Args:
            outgoing: [B] bytes on `wire_device`, possibly none.
            incoming: [B'] bytes to be overwritten, possibly none.
            shift: Places.
        """
        after, before = (self.rank + shift) % self.size, (self.rank - shift) % self.size
        transfers = []
        if outgoing.numel():
            transfers.append(dist.P2POp(dist.isend, outgoing, after))
        if incoming.numel():
            transfers.append(dist.P2POp(dist.irecv, incoming, before))
        if transfers:
            for work in dist.batch_isend_irecv(transfers):
                work.wait()
        self.sent += outgoing.numel()

    def add_up(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace every tensor by its sum over the ranks, in place.

        Args:
            tensors: The same names and shapes on all ranks.

        Raises:
            PeerError: If a rank did not get here.
        """
        if self.size == 1:
            return
        self.exchange()
        for tensor in tensors.values():
            moved = tensor.to(wire_device(tensor.device)).contiguous()
            dist.all_reduce(moved)
            self.sent += 2 * moved.nbytes * (self.size - 1) // self.size
            if moved.data_ptr() != tensor.data_ptr():
                tensor.copy_(moved)

    def _gather(self, value: Any) -> list[Any]:
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self._group)
        return found


def wire_device(device: torch.device) -> torch.device:
    """Where tensors of a device have to be to be sent."""
    return device if "nccl" in dist.get_backend() else torch.device("cpu")


_CONTROL: list[tuple[dist.ProcessGroup, dist.ProcessGroup]] = []  # (the run's group, ours)


def _control_group() -> dist.ProcessGroup:
    """A gloo group of all processes: the run's own one, or one made once beside it."""
    world = dist.group.WORLD
    assert world is not None
    if dist.get_backend() == "gloo":
        return world
    if not _CONTROL or _CONTROL[0][0] is not world:
        made = dist.new_group(backend="gloo")
        assert isinstance(made, dist.ProcessGroup)
        _CONTROL[:] = [(world, made)]
    return _CONTROL[0][1]
