"""Run a recorded program: the step's operations without the step.

The values from outside stay as they are: what the program writes to is copied first, generators are
put back, no hook of a parameter fires. The operations are called as torch dispatches them, so modes
and transformations of torch.func see them; under `torch.func.vmap` draws of the step's own need
``randomness="same"``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.forward_ad import _set_fwd_grad_enabled

from lightning_vivit.problem.isolation.numerics import default_dtype
from lightning_vivit.problem.isolation.rng import default_generator, isolated_rng
from lightning_vivit.problem.tape.forms import evaluation_form, raised, wider
from lightning_vivit.problem.tape.program import (
    GENERATOR,
    Input,
    Operation,
    Program,
    ProgramError,
    Slot,
    State,
    replaced,
)
from lightning_vivit.problem.tape.slicing import sliced
from lightning_vivit.problem.tape.surroundings import DEVICES

FORMS = ("train", "eval")


def prepared(
    program: Program,
    *,
    form: str = "train",
    dtype: torch.dtype | None = None,
    result: Any = None,
) -> Program:
    """A program ready to be executed, as often as wanted.

    Args:
        program: As it was recorded.
        form: ``train``: as it ran, with the same random numbers, bitwise. ``eval``: as in
            evaluation mode, see `evaluation_form`.
        dtype: None for all as it ran, autocast included; torch.float32 or torch.float64 for at
            least so many bits everywhere, without autocast.
        result: Nested slots that are wanted; None for what the step returned.

    Returns:
        The operations that the result needs, in that form.
    """
    if form not in FORMS:
        raise ValueError(f"Unknown form {form!r}. Supported: {', '.join(FORMS)}.")
    made = sliced(evaluation_form(program) if form == "eval" else program, result)
    return made if dtype is None else raised(made, dtype)


def leaves(program: Program, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The parameters that a program uses, as leaves of their own that share the memory.

    Args:
        program: The program.
        dtype: Convert those with fewer bits.

    Returns:
        Name -> leaf that needs a gradient if the parameter did; frozen ones included.
    """
    found: dict[str, Tensor] = {}
    for name, slot in program.named("parameter").items():
        each = program.inputs[slot]
        value = _plain(each, dtype)
        found[name] = nn.Parameter(value, each.requires_grad)
    return found


def execute(program: Program, values: Mapping[str, Tensor] | None = None) -> Any:
    """Run a prepared program.

    Args:
        program: From `prepared`.
        values: Tensors to use in the place of parameters and buffers, by name; the others have
            the values from before the step.

    Returns:
        The result, with tensors in the place of slots.

    Raises:
        ProgramError: A part of the step is not on the tape, or the numbers of an input are gone.
    """
    missing = dict.fromkeys(hole.message for hole in program.holes if hole.certain)
    if missing:
        raise ProgramError(f"The recorded operations do not show {', nor '.join(missing)}.")
    values = values or {}
    places: list[Any] = [None] * program.size
    for slot, each in program.inputs.items():
        value = values.get(each.name) if each.name else None
        if value is None:
            value = _plain(each, program.dtype)
            value = value.requires_grad_() if each.requires_grad else value
        places[slot] = value.clone() if slot in program.written else value
    with isolated_rng(), default_dtype(program.default_dtype), _Settings(program) as settings:
        for operation, released in zip(program.operations, program.released, strict=True):
            settings.set(operation.state)
            _run(operation, places)
            for slot in released:
                places[slot] = None
        return replaced(program.result, _reader(places))


def _run(operation: Operation, places: list[Any]) -> None:
    function, args, kwargs, outputs = operation[:4]
    draw = operation.draw
    read = _reader(places)
    if draw is not None:
        generator = draw.generator() if draw.own else default_generator(draw.device)
        if not draw.own:
            generator.set_state(draw.state)
        read = _reader(places, generator)
    given = replaced(args, read)
    out = function(*given, **replaced(kwargs, read))
    if type(outputs) is Slot:
        if given and out is given[0] and args[0] != outputs:
            out = out.clone()  # a conversion that had something to do where it was recorded
        places[outputs] = out
    else:
        _bind(outputs, out, places)


def _reader(places: list[Any], generator: torch.Generator | None = None) -> Callable[[Any], Any]:
    def read(leaf: Any) -> Any:
        if type(leaf) is Slot:
            return places[leaf]
        return generator if leaf is GENERATOR else leaf

    return read


def _bind(template: Any, value: Any, places: list[Any]) -> None:
    """Put a result into its slots."""
    if type(template) is Slot:
        places[template] = value
    elif isinstance(template, tuple):
        for each, item in zip(template, value, strict=True):
            _bind(each, item, places)
    elif isinstance(template, dict):
        for key, each in template.items():
            _bind(each, value[key], places)


def _plain(each: Input, dtype: torch.dtype | None) -> Tensor:
    """The value of an input as a tensor of its own, which shares the memory where it can."""
    if each.is_empty():
        name = each.name or f"a {each.role} of shape {tuple(each.tensor.shape)}"
        raise ProgramError(
            f"{name} has no numbers any more: its memory was given back after the step used it, as "
            "sharded weights do. Gather the parameters, or give an explicit Problem."
        )
    value = each.value.detach()
    if value.is_inference():
        value = value.clone()
    return value if dtype is None else value.to(wider(value.dtype, dtype))


class _Settings:
    """Gradients, forward mode included, and autocast as they were for each operation.

    A region of autocast keeps what it converted, and shared conversions are summed in the lower
    precision, so regions begin and end where they did.
    """

    def __init__(self, program: Program) -> None:
        self._around = program.autocast
        self._state = State(torch.is_grad_enabled(), program.autocast)
        self._stack, self._inner = ExitStack(), ExitStack()

    def __enter__(self) -> _Settings:
        """Begin as around the step."""
        self._stack.enter_context(torch.set_grad_enabled(self._state.grad))
        self._stack.enter_context(_set_fwd_grad_enabled(self._state.grad))
        _enter_autocast(self._stack, self._around)
        return self

    def __exit__(self, *error: object) -> None:
        """Put everything back."""
        self._inner.close()
        self._stack.close()

    def set(self, state: State) -> None:
        """Go on as an operation was run."""
        if state is self._state:
            return
        if state.grad != self._state.grad:
            torch.set_grad_enabled(state.grad)
            torch._C._set_fwd_grad_enabled(state.grad)
        if state.autocast != self._state.autocast:
            self._inner.close()
            if state.autocast != self._around:
                _enter_autocast(self._inner, state.autocast)
        self._state = state


def _enter_autocast(stack: ExitStack, wanted: tuple[tuple[str, torch.dtype], ...]) -> None:
    dtypes = dict(wanted)
    for device in DEVICES:
        if device in dtypes:
            stack.enter_context(torch.autocast(device, dtypes[device]))
        elif torch.is_autocast_enabled(device):
            stack.enter_context(torch.autocast(device, enabled=False))
