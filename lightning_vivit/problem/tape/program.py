"""A recorded step as a program: operations over slots, which can be run again without the step.

Every tensor that an operation took or gave has a slot, a number. A program keeps the operations
with slots in the place of tensors, and tensors only where a value came from outside: parameters,
buffers, the batch, constants. What the operations computed on the way is not kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_vivit.errors import ProblemError


class ProgramError(ProblemError):
    """A recorded step cannot be run again; the message says what stands in the way."""


class Slot(int):
    """The place of a tensor's value while a program runs."""

    __slots__ = ()


class State(NamedTuple):
    """What held while an operation ran.

    Attributes:
        grad: Whether gradients were on.
        autocast: Device types with autocast on, each with its dtype.
    """

    grad: bool
    autocast: tuple[tuple[str, torch.dtype], ...] = ()


class Draw(NamedTuple):
    """Where an operation took its random numbers.

    Attributes:
        device: Of the generator.
        state: Of the generator before the operation.
        own: Whether the generator was an argument, in whose place the operation has `GENERATOR`;
            else it was the device's default one.
        dtypes: Of the tensors that it was given, in their order; only where they matter.
    """

    device: torch.device
    state: Tensor
    own: bool
    dtypes: tuple[torch.dtype, ...]

    def generator(self) -> torch.Generator:
        """A new generator in the same state."""
        generator = torch.Generator(self.device)
        generator.set_state(self.state)
        return generator


class _Generator(Enum):
    PLACE = "generator"


GENERATOR = _Generator.PLACE


class Operation(NamedTuple):
    """One recorded operation.

    Attributes:
        function: As torch dispatched it.
        args: Its arguments, slots in the place of tensors.
        kwargs: The same by name.
        outputs: Its result, with slots; None in the place of what is no tensor.
        state: What held while it ran.
        draw: Where its random numbers came from; None if it took none.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: Any
    state: State
    draw: Draw | None = None

    @property
    def name(self) -> str:
        """The function's name."""
        return getattr(self.function, "__name__", str(self.function))


@dataclass(slots=True)
class Input:
    """A value from outside.

    Attributes:
        tensor: The tensor itself.
        version: How often it had been written to when it was first seen.
        requires_grad: Whether it was a leaf that needs a gradient.
        saved: A copy from before the step's first write to it; None if there was none.
        role: ``parameter``, ``buffer``, ``batch`` or ``constant``.
        name: Qualified name of a parameter or buffer.
    """

    tensor: Tensor
    version: int
    requires_grad: bool
    saved: Tensor | None = None
    role: str = "constant"
    name: str = ""

    @property
    def value(self) -> Tensor:
        """The numbers from before the step."""
        return self.tensor if self.saved is None else self.saved

    def is_changed(self) -> bool:
        """Whether it was written to, and no recorded operation did it."""
        return self.saved is None and version_of(self.tensor) != self.version

    def is_empty(self) -> bool:
        """Whether its numbers are gone, as those of sharded weights between two uses."""
        value = self.value
        if value.layout != torch.strided or value.numel() == 0 or value.device.type == "meta":
            return False
        return value.untyped_storage().size() == 0


class Hole(NamedTuple):
    """Something that the operations do not show.

    Attributes:
        kind: A word for it.
        message: What was seen, and where.
        slot: The tensor that it made; None if that is not known.
        certain: Whether a program with it is wrong. If not, only a comparison can tell.
    """

    kind: str
    message: str
    slot: Slot | None = None
    certain: bool = True


@dataclass(frozen=True)
class Program:
    """The operations of one step, in their order.

    Attributes:
        operations: What ran.
        inputs: Values from outside, by slot.
        result: What the step returned, with slots in the place of tensors.
        size: Number of slots.
        holes: What was seen not to be on the tape.
        default_dtype: That of new tensors.
        dtype: What inputs with fewer bits are converted to; set by `raised`.
        autocast: Device types with autocast on around the step, each with its dtype.
        released: For each operation the slots that nothing reads after it; set by `sliced`.
        written: Inputs that operations write to; set by `sliced`.
    """

    operations: tuple[Operation, ...]
    inputs: Mapping[Slot, Input]
    result: Any
    size: int
    holes: tuple[Hole, ...] = ()
    default_dtype: torch.dtype = torch.float32
    dtype: torch.dtype | None = None
    autocast: tuple[tuple[str, torch.dtype], ...] = ()
    released: tuple[tuple[Slot, ...], ...] = ()
    written: frozenset[Slot] = field(default_factory=frozenset)

    @property
    def loss(self) -> Slot | None:
        """The slot of the loss, if the step returned it, or a dict with one under ``loss``."""
        found = self.result.get("loss") if isinstance(self.result, Mapping) else self.result
        return found if type(found) is Slot else None

    def named(self, role: str) -> dict[str, Slot]:
        """The slots of parameters or buffers by name."""
        return {each.name: slot for slot, each in self.inputs.items() if each.role == role}


def slots_in(template: Any) -> Iterator[Slot]:
    """All slots in nested arguments or results."""
    if type(template) is Slot:
        yield template
    elif isinstance(template, (tuple, list)):
        for item in template:
            yield from slots_in(item)
    elif isinstance(template, Mapping):
        for item in template.values():
            yield from slots_in(item)
    elif type(template) is slice:
        yield from slots_in((template.start, template.stop, template.step))


def replaced(template: Any, leaf: Callable[[Any], Any]) -> Any:
    """Nested arguments with each leaf replaced.

    Args:
        template: Nested tuples, lists, dicts and slices.
        leaf: Gives what stands in the place of anything else.

    Returns:
        The same nesting.
    """
    kind = type(template)
    if kind is tuple or kind is list:
        return kind([replaced(item, leaf) for item in template])
    if isinstance(template, Mapping):
        return {key: replaced(item, leaf) for key, item in template.items()}
    if kind is slice:
        parts = (template.start, template.stop, template.step)
        return slice(*[replaced(item, leaf) for item in parts])
    return leaf(template)


def version_of(tensor: Tensor) -> int:
    """How often a tensor was written to; inference tensors do not count."""
    try:
        return tensor._version
    except RuntimeError:
        return -1
