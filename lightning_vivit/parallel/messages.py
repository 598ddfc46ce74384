"""Factors as bytes, so that ranks can send them to each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_vivit.factors import Dense, Factor, OuterProduct

_ALIGN = 64  # bytes


@dataclass(frozen=True)
class Form:
    """What is needed to read a factor from bytes.

    Attributes:
        kind: Class of the factor.
        tensors: Argument -> shape and dtype of a tensor, in the order of the bytes.
        options: The other arguments.
    """

    kind: type[Factor]
    tensors: dict[str, tuple[torch.Size, torch.dtype]]
    options: dict[str, Any]

    @classmethod
    def of(cls, factor: Factor) -> Form:
        """The form of a factor, whose attributes are the arguments of its class."""
        tensors = {
            name: (value.shape, value.dtype)
            for name, value in vars(factor).items()
            if isinstance(value, Tensor)
        }
        options = {name: value for name, value in vars(factor).items() if name not in tensors}
        return cls(type(factor), tensors, options)

    @property
    def size(self) -> int:
        """Bytes of the message."""
        return sum(_padded(shape, dtype) for shape, dtype in self.tensors.values())

    def prepare(self, factor: Factor) -> Factor:
        """The factor in the kind of this form: itself, or its rows with those of its bias."""
        if self.kind is type(factor):
            return factor
        assert isinstance(factor, OuterProduct)
        rows = factor.rows()
        if factor.offset:
            rows = torch.cat([rows, factor.columns.sum(4).flatten(2)], dim=2)
        return Dense(rows, self.options["shape"])

    def write(self, factor: Factor, buffer: Tensor) -> Tensor:
        """Write a factor to the beginning of a buffer of bytes; returns that part."""
        for name, place in self._places(buffer).items():
            place.copy_(getattr(factor, name))
        return buffer[: self.size]

    def read(self, message: Tensor, device: torch.device) -> Factor:
        """The factor of a message; on the same device it shares the message's memory."""
        tensors = {name: place.to(device) for name, place in self._places(message).items()}
        return self.kind(**tensors, **self.options)

    def _places(self, buffer: Tensor) -> dict[str, Tensor]:
        found, start = {}, 0
        for name, (shape, dtype) in self.tensors.items():
            size = shape.numel() * dtype.itemsize
            found[name] = buffer[start : start + size].view(dtype).view(shape)
            start += _padded(shape, dtype)
        return found


def rows_form(factor: OuterProduct) -> Form:
    """The form of a factor as explicit rows; a bias that it includes comes after the weight."""
    n, d, groups, a, _ = factor.columns.shape
    entries = factor.shape.numel() + (groups * a if factor.offset else 0)
    shape = torch.Size([n, d, entries])
    return Form(Dense, {"values": (shape, factor.columns.dtype)}, {"shape": torch.Size([entries])})


def _padded(shape: torch.Size, dtype: torch.dtype) -> int:
    return -(-shape.numel() * dtype.itemsize // _ALIGN) * _ALIGN
