"""Observe a step while it runs: record all its torch operations, and change nothing.

A `TorchFunctionMode` sees every operation that Python runs in this thread. It runs it and notes it
down with slots in the place of tensors, so that nothing is kept alive that the step lets go; only
values that come from outside (parameters, buffers, the batch, constants) are kept, and copied
before the step writes to them. States of random generators are saved where numbers are drawn.

What Python does not see of the step is a hole: TorchScript, compiled code, the backward pass of an
`autograd.Function`. A hole is noted with the tensor that came out of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import MappingProxyType
from typing import Any
from weakref import ref

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import (
    TorchFunctionMode,
    _get_current_function_mode,
    _pop_mode_temporarily,
)

from lightning_vivit.problem.tape.effects import Effects, effects_of
from lightning_vivit.problem.tape.operation import opened
from lightning_vivit.problem.tape.program import (
    GENERATOR,
    Draw,
    Hole,
    Input,
    Operation,
    Program,
    Slot,
    State,
    version_of,
)
from lightning_vivit.problem.tape.surroundings import (
    autocast_state,
    draw_of,
    is_number,
    place_of,
    tensors_among,
)
from lightning_vivit.problem.tape.unseen import (
    function_hole,
    hidden_parts,
    is_compiled_whole,
    is_constant,
    names_of,
    origin,
)
from lightning_vivit.samples.batch import tensors_in

_PLAIN = frozenset(
    (
        *(int, float, bool, complex, str, bytes, type(None), type(Ellipsis), type, torch.Size),
        *(torch.dtype, torch.device, torch.layout, torch.memory_format),
    )
)
_EMPTY: Mapping[str, Any] = MappingProxyType({})
_GRAD, _NO_GRAD = State(True), State(False)
_grad_enabled = torch.is_grad_enabled
_any_autocast = torch._C._is_any_autocast_enabled
_OPEN = frozenset((F.gumbel_softmax,))  # draw inside, in the dtype of their argument


def observe(
    function: Callable[..., Any], module: nn.Module, *args: Any, **kwargs: Any
) -> tuple[Any, Program]:
    """Call a function of a module and record the operations that it runs.

    The call does what it would do alone: values, gradients, buffers and random numbers are
    bitwise the same. A failure of the recorder is a hole in the program, not an error.

    Args:
        function: For example ``module.training_step``.
        module: Its parameters and buffers get their names.
        *args: Of the function. Tensors in them are the batch.
        **kwargs: The same by name.

    Returns:
        What the function returned, and the program.

    Raises:
        Exception: What the function raised.
    """
    observer = Observer(module, (args, kwargs))
    with observer.attached():
        returned = function(*args, **kwargs)
    return returned, observer.program(returned)


class Observer(TorchFunctionMode):
    """Records while it is active; see `observe`."""

    def __init__(self, module: nn.Module, batch: Any = None) -> None:
        """Prepare an empty recording.

        Args:
            module: Whose step it is.
            batch: Nested tensors that the step gets.
        """
        super().__init__()
        self._module = module
        self._batch = {id(tensor) for tensor in tensors_in(batch)}
        self._known: dict[int, tuple[Any, Slot, bool]] = {}  # id -> reference, slot, has its graph
        self._operations: list[tuple[Any, ...]] = []  # fields of an `Operation`
        self._inputs: dict[Slot, Input] = {}
        self._places: dict[int, list[Slot]] = {}  # storage -> inputs
        self._unplaced: list[Slot] = []
        self._holes: list[Hole] = []
        self._states: dict[State, State] = {}
        self._size = 0
        self._failed = False
        self._dtype = torch.get_default_dtype()
        self._autocast = autocast_state()

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Record what runs inside, except what has to run as if nobody looked."""
        with ExitStack() as stack:
            for part in hidden_parts(self._module):
                stack.enter_context(part.wrapped(self._hide))
            if not is_compiled_whole(self._module):
                stack.enter_context(self)
            yield

    def program(self, returned: Any) -> Program:
        """What was recorded.

        Args:
            returned: What the step returned.
        """
        result = None
        try:
            result = None if self._failed else self._frozen(returned)
        except Exception as error:
            self._fail(error)
        names = names_of(self._module)
        for each in self._inputs.values():
            role = "batch" if id(each.tensor) in self._batch else "constant"
            each.role, each.name = names.get(id(each.tensor), (role, ""))
        self._known.clear()
        return Program(
            tuple(map(Operation._make, self._operations)),
            self._inputs,
            result,
            self._size,
            tuple(self._holes),
            self._dtype,
            autocast=self._autocast,
        )

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run one operation and note it down."""
        if func in _OPEN:
            with self:
                return opened(func)(*args, **(kwargs or {}))
        effects, draw = effects_of(func), None
        if effects.special or (kwargs and ("out" in kwargs or "generator" in kwargs)):
            draw = self._before(func, effects, args, kwargs or {})
        out = func(*args, **kwargs) if kwargs else func(*args)
        if (not effects.special and type(out) in _PLAIN) or self._failed:
            return out
        try:
            if not effects.apart or self._note_apart(effects, args, kwargs, out):
                self._note(func, args, kwargs, out, draw)
        except Exception as error:  # the step goes on, whatever happens here
            self._fail(error)
        return out

    def _before(
        self,
        func: Callable[..., Any],
        effects: Effects,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Draw | None:
        """Save what one operation is about to change: values from outside, random states."""
        if self._failed:
            return None
        try:
            if (effects.in_place or effects.writes or "out" in kwargs) and not effects.flags_only:
                for tensor in tensors_among(effects.written(func, args, kwargs)):
                    self._save(tensor)
            return draw_of(func, effects, args, kwargs)
        except Exception as error:
            self._fail(error)
            return None

    def _note(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any] | None,
        out: Any,
        draw: Draw | None,
    ) -> None:
        """Note one operation that has run. What is common is done here, since it is often."""
        known, frozen = self._known, []
        for value in args:
            if type(value) in _PLAIN:
                frozen.append(value)
                continue
            found = known.get(id(value))
            if found is not None and found[0]() is value and found[2]:
                frozen.append(found[1])
            else:
                frozen.append(self._frozen(value))
        named = {name: self._frozen(value) for name, value in kwargs.items()} if kwargs else _EMPTY
        state = _GRAD if _grad_enabled() else _NO_GRAD
        if _any_autocast():
            state = State(state.grad, autocast_state())
            state = self._states.setdefault(state, state)
        outputs: Any = None
        if type(out) is Tensor:
            found = known.get(id(out))
            if found is None or found[0]() is not out:
                outputs = Slot(self._size)
                self._size += 1
                known[id(out)] = (ref(out), outputs, state[0])
        if outputs is None:
            outputs = self._made(out, state[0])
        self._operations.append((func, tuple(frozen), named, outputs, state, draw))

    def _note_apart(
        self, effects: Effects, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None, out: Any
    ) -> bool:
        """Whether an operation of a special kind is noted like others."""
        if effects.name == "register_hook":
            message = "a hook on a tensor (register_hook), which may change the gradient"
            self._holes.append(Hole("hooks", message, self._frozen(args[0]), certain=False))
        if effects.collective:  # what other processes sent is a constant
            for tensor in tensors_among([args, kwargs, out]):
                self._known.pop(id(tensor), None)
        return effects.imports and is_number(args)

    def _made(self, value: Any, graph: bool) -> Any:
        """The slots of a result; new tensors get new ones."""
        if isinstance(value, Tensor):
            found = self._known.get(id(value))
            if found is None or found[0]() is not value:
                slot = Slot(self._size)
                self._size += 1
                self._known[id(value)] = (ref(value), slot, graph)
                return slot
            if graph and not found[2]:
                self._known[id(value)] = (found[0], found[1], True)
            return found[1]
        if isinstance(value, (tuple, list)):
            return tuple([self._made(item, graph) for item in value])
        if isinstance(value, dict):
            return {key: self._made(item, graph) for key, item in value.items()}
        return None

    def _frozen(self, value: Any) -> Any:
        """A value with slots in the place of tensors, containers copied."""
        kind = type(value)
        if kind in _PLAIN:
            return value
        if isinstance(value, Tensor):
            found = self._known.get(id(value))
            if found is None or found[0]() is not value:
                return self._outside(value)
            if not found[2] and value.grad_fn is not None:
                self._note_graph(value, found[1])
            return found[1]
        if isinstance(value, tuple):
            return tuple([self._frozen(item) for item in value])
        if isinstance(value, list):
            return [self._frozen(item) for item in value]
        if isinstance(value, dict):
            return {key: self._frozen(item) for key, item in value.items()}
        if kind is slice:
            return slice(*map(self._frozen, (value.start, value.stop, value.step)))
        if kind is torch.Generator:
            return GENERATOR
        return value.copy() if kind is np.ndarray else value

    def _outside(self, tensor: Tensor) -> Slot:
        """The slot of a tensor that no operation made."""
        slot: Slot = self._made(tensor, True)
        self._unplaced.append(slot)
        if is_constant(tensor):
            self._inputs[slot] = Input(tensor, version_of(tensor), tensor.requires_grad)
            return slot
        earlier = [each for each in self._holes if each.kind == "torch.func"]
        hole = earlier[0] if earlier else origin(tensor, self._module)
        self._holes.append(hole._replace(slot=slot))
        value = torch.empty(0) if hole.kind == "torch.func" else tensor.detach()
        self._inputs[slot] = Input(value, 0, False)
        return slot

    def _save(self, tensor: Tensor) -> None:
        """Copy the values from outside that share memory with a tensor, before it is written to."""
        if id(tensor) not in self._known:
            self._outside(tensor)
        while self._unplaced:
            slot = self._unplaced.pop()
            self._places.setdefault(place_of(self._inputs[slot].tensor), []).append(slot)
        sharing = self._places.get(place_of(tensor), ())
        for slot in sharing:
            each = self._inputs[slot]
            if each.saved is None:
                each.saved = each.tensor.detach().clone()
        if len(sharing) > 1:
            message = "tensors from outside that share memory, one of which is changed in place"
            self._holes.append(Hole("shared memory", message, sharing[0], certain=False))

    def _note_graph(self, tensor: Tensor, slot: Slot) -> None:
        """Note a tensor that was made without gradients and has a backward pass all the same."""
        self._known[id(tensor)] = (ref(tensor), slot, True)
        hole = function_hole(tensor)
        if hole is not None:
            self._holes.append(hole._replace(slot=slot))

    def _fail(self, error: Exception) -> None:
        self._failed = True
        self._known.clear()
        message = f"the recorder failed: {type(error).__name__}: {error}"
        self._holes.append(Hole("recorder", message))

    @contextmanager
    def _hide(self) -> Iterator[None]:
        """Take the mode off, if it is the innermost one."""
        if _get_current_function_mode() is self:
            with _pop_mode_temporarily():
                yield
        else:
            yield
