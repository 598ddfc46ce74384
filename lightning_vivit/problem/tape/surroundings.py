"""What has to be noted around an operation: random states, where numbers lie, autocast."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_vivit.problem.isolation.rng import default_generator
from lightning_vivit.problem.tape.effects import Effects, is_random
from lightning_vivit.problem.tape.program import Draw

DEVICES = ("cpu", "cuda")  # with autocast of their own


def draw_of(
    func: Callable[..., Any], effects: Effects, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Draw | None:
    """Where an operation is about to take its random numbers."""
    generator = kwargs.get("generator")
    if generator is None and not (effects.draws and is_random(func, args, kwargs)):
        return None
    dtypes = tuple([t.dtype for t in tensors_among([args, kwargs])]) if effects.noise else ()
    if generator is not None:
        return Draw(generator.device, generator.get_state(), True, dtypes)
    device = args[0].device if args and isinstance(args[0], Tensor) else kwargs.get("device")
    if device is None:
        device = next((t.device for t in tensors_among([args, kwargs])), torch.get_default_device())
    device = torch.device(device)
    return Draw(device, default_generator(device).get_state(), False, dtypes)


def is_number(args: tuple[Any, ...]) -> bool:
    """Whether a tensor is made of a number or of another tensor, not of data from outside."""
    return bool(args) and isinstance(args[-1], (int, float, Tensor))


def place_of(tensor: Tensor) -> int:
    """Where the numbers of a tensor lie; one for each that has no plain storage."""
    try:
        return tensor.untyped_storage().data_ptr() or -id(tensor)
    except (RuntimeError, NotImplementedError):
        return -id(tensor)


def autocast_state() -> tuple[tuple[str, torch.dtype], ...]:
    """Device types with autocast on, each with its dtype."""
    return tuple(
        (device, torch.get_autocast_dtype(device))
        for device in DEVICES
        if torch.is_autocast_enabled(device)
    )


def tensors_among(value: Any) -> Iterator[Tensor]:
    """All tensors among the arguments of an operation."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_among(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_among(item)
