"""Where the samples are in a tensor: which axis, and how they share it with positions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class SampleAxis:
    """Axis `dim` of a tensor holds N samples times T positions.

    Attributes:
        dim: The axis.
        num_samples: N.
        minor: False if the order along the axis is (N, T), True if it is (T, N).
    """

    dim: int
    num_samples: int
    minor: bool = False

    def split(self, tensor: Tensor, leading: int = 0) -> Tensor:
        """Move the samples to the front and leave the positions in their place.

        Args:
            tensor: [*lead, d_0, ..., N*T, ...] with the axis counted after `leading` axes.
            leading: Number of leading axes in front, such as 1 for a column axis.

        Returns:
            [N, *lead, d_0, ..., T, ...].
        """
        axis = self.dim + leading
        count = tensor.shape[axis] // self.num_samples
        shape = tensor.shape
        if self.minor:
            parts = tensor.reshape(*shape[:axis], count, self.num_samples, *shape[axis + 1 :])
            return parts.movedim(axis + 1, 0)
        parts = tensor.reshape(*shape[:axis], self.num_samples, count, *shape[axis + 1 :])
        return parts.movedim(axis, 0)

    def select(self, tensor: Tensor, sample: int, leading: int = 0) -> Tensor:
        """View of one sample's entries; writing to it writes to `tensor`."""
        axis = self.dim + leading
        count = tensor.shape[axis] // self.num_samples
        if self.minor:
            start, step = sample, self.num_samples
            index = [slice(None)] * axis + [slice(start, None, step)]
        else:
            index = [slice(None)] * axis + [slice(sample * count, (sample + 1) * count)]
        return tensor[tuple(index)]


def candidate_axes(shape: tuple[int, ...], num_samples: int) -> list[SampleAxis]:
    """All axes that can hold N samples, the usual places first."""
    found = []
    exact = [dim for dim, size in enumerate(shape) if size == num_samples]
    found += [SampleAxis(dim, num_samples) for dim in exact]
    for dim, size in enumerate(shape):
        if size > num_samples and size % num_samples == 0:
            found.append(SampleAxis(dim, num_samples))
            if num_samples > 1:
                found.append(SampleAxis(dim, num_samples, minor=True))
    return found


def likely_counts(sizes: Sequence[int], rows: int) -> list[int]:
    """Possible numbers of samples, the likely ones first.

    Args:
        sizes: Leading sizes of the batch's tensors.
        rows: Leading size of the outputs: the samples, or samples times positions.

    Returns:
        At least one number that divides `rows`.
    """
    whole = [rows] if rows == sizes[0] else []
    common = [size for size, _ in Counter(sizes).most_common() if rows % size == 0]
    parts = [size for size in common if size > 1] + [size for size in common if size == 1]
    return list(dict.fromkeys([*whole, *parts])) or [rows]


def is_sequence_first(batch: Iterable[Tensor], rows: int) -> bool:
    """Whether a tensor has as many samples as the outputs have rows, but on its second axis.

    Args:
        batch: The batch's tensors. Features without positions say nothing, since their number may
            be anything; neither does one row, which may be one sample with its positions.
        rows: Leading size of the outputs.
    """
    return any(
        tensor.shape[1] == rows != tensor.shape[0] > 1
        for tensor in batch
        if tensor.ndim > 2 or (tensor.ndim == 2 and not tensor.is_floating_point())
    )
