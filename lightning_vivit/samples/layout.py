"""Which rows of the outputs belong to which sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lightning_vivit.errors import ProblemError


@dataclass(frozen=True)
class SampleLayout:
    """How axis 0 of the outputs, of size N*T, is made of N samples with T positions each.

    Attributes:
        num_samples: Number of samples N.
        minor: Whether the sample index runs fastest (rows of a sequence-first tensor) instead of
            slowest.
    """

    num_samples: int
    minor: bool = False

    def split(self, tensor: Tensor) -> Tensor:
        """Give the samples an axis of their own.

        Args:
            tensor: [N*T, ...].

        Returns:
            [N, T, ...].
        """
        rows = tensor.shape[0] if tensor.ndim else 0
        if self.num_samples < 1 or rows < 1 or rows % self.num_samples:
            raise ProblemError(
                f"A tensor of shape {tuple(tensor.shape)} cannot be divided among "
                f"{self.num_samples} samples: its first axis must be a positive multiple of the "
                "number of samples. Pass a non-empty batch with the samples in the first axis."
            )
        rest, positions = tensor.shape[1:], rows // self.num_samples
        if self.minor:
            return tensor.reshape(positions, self.num_samples, *rest).transpose(0, 1)
        return tensor.reshape(self.num_samples, positions, *rest)

    def merge(self, tensor: Tensor) -> Tensor:
        """Undo `split`.

        Args:
            tensor: [N, T, ...].

        Returns:
            [N*T, ...].
        """
        ordered = tensor.transpose(0, 1) if self.minor else tensor
        return ordered.reshape(tensor.shape[0] * tensor.shape[1], *tensor.shape[2:])

    def flatten(self, tensor: Tensor) -> Tensor:
        """Put everything that belongs to a sample into one axis.

        Args:
            tensor: [N*T, ...], like the outputs.

        Returns:
            [N, D].
        """
        return self.split(tensor).reshape(self.num_samples, -1)

    def unflatten(self, tensor: Tensor, shape: Sequence[int]) -> Tensor:
        """Undo `flatten`.

        Args:
            tensor: [N, D].
            shape: Shape of the outputs, [N*T, ...].

        Returns:
            A tensor of that shape.
        """
        rows, *rest = shape
        return self.merge(tensor.reshape(self.num_samples, rows // self.num_samples, *rest))
