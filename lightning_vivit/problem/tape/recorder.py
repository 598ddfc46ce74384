"""Record a forward pass: which operations use trainable parameters, and the call of the loss.

A `TorchFunctionMode` sees every torch operation that Python runs. The recorder keeps those that
combine a parameter (or a tensor computed from parameters alone, such as a parametrized weight)
with data, together with the place in the autograd graph where their output's gradient arrives.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn._reduction import legacy_get_string
from torch.overrides import TorchFunctionMode

from lightning_vivit.losses.known_losses import LOSS_FUNCTIONS, OTHER_LOSSES
from lightning_vivit.problem.forms.sweeps import Substitutes
from lightning_vivit.problem.isolation.writes import WriteGuard
from lightning_vivit.problem.tape.loss_calls import RecordedLoss, versions
from lightning_vivit.problem.tape.operation import opened
from lightning_vivit.problem.tape.summary import summary
from lightning_vivit.samples.batch import tensors_in

LOG_SOFTMAX = {F.log_softmax, torch.log_softmax, Tensor.log_softmax}
_RESHAPES = {
    Tensor.view,
    Tensor.reshape,
    torch.reshape,
    Tensor.flatten,
    torch.flatten,
    Tensor.transpose,
    torch.transpose,
    Tensor.permute,
    torch.permute,
    Tensor.movedim,
    torch.movedim,
    Tensor.unflatten,
    Tensor.squeeze,
    torch.squeeze,
    Tensor.contiguous,
    Tensor.swapaxes,
    Tensor.float,
}


@dataclass(frozen=True)
class Output:
    """One differentiable output of a recorded operation."""

    shape: torch.Size
    edge: GradientEdge  # where the gradient with respect to this output arrives


@dataclass(frozen=True)
class Call:
    """One operation that combines parameters with data."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: tuple[Output | None, ...]  # None where an output needs no gradient
    module: str  # qualified name of the module that ran it, "" for the root
    tainted: bool  # whether data of the batch enters it

    @property
    def name(self) -> str:
        """The operation's name for messages."""
        return getattr(self.function, "__name__", str(self.function))

    def arguments(self, *names: str, **defaults: Any) -> list[Any]:
        """Arguments by name, for functions without an inspectable signature.

        Args:
            *names: The parameter names of the function in their order.
            **defaults: Default values by name; None where missing.

        Returns:
            One value for each name.
        """
        values = dict(zip(names, self.args, strict=False))
        values.update(self.kwargs)
        return [values.get(name, defaults.get(name)) for name in names]

    @property
    def is_complex(self) -> bool:
        """Whether complex numbers take part."""
        return any(tensor.is_complex() for tensor in tensors_in([self.args, self.kwargs]))


@dataclass
class Tape:
    """What was recorded during one forward pass."""

    parameters: dict[str, nn.Parameter]  # trainable ones, by qualified name
    calls: list[Call] = field(default_factory=list)
    derived: dict[int, Tensor] = field(default_factory=dict)  # computed from parameters alone
    losses: list[RecordedLoss] = field(default_factory=list)
    other_losses: list[str] = field(default_factory=list)  # loss functions without a rule
    mixing: list[str] = field(default_factory=list)  # modules that normalise over the batch
    trace: list[tuple[Any, ...]] = field(default_factory=list)  # summaries of all operations


class Recorder(TorchFunctionMode):
    """Fill a `Tape` while active.

    Operations on parameters alone are not calls: their outputs count as derived parameters, and
    the first operation that combines one with data is the call.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        data: Any,
        guard: WriteGuard | None = None,
        substitutes: Substitutes | None = None,
    ) -> None:
        """Prepare an empty tape.

        Args:
            parameters: The trainable parameters by name.
            data: The batch; tensors in it (nested) and all that is computed from them is data.
            guard: Stops operations that would write to parameters.
            substitutes: Runs the operations in equivalent forms.
        """
        super().__init__()
        self._guard = guard
        self._substitutes = substitutes
        self.tape = Tape(dict(parameters))
        self._sources = {id(parameter) for parameter in parameters.values()}
        self._tainted = {id(tensor): tensor for tensor in tensors_in(data)}
        self._logits: dict[int, tuple[Tensor, Tensor]] = {}  # log-probabilities -> logits
        self._modules: list[str] = []
        self._names: dict[int, str] = {}

    @contextmanager
    def watch(self, module: nn.Module) -> Iterator[None]:
        """Record what runs inside, with the names of `module`'s submodules."""
        self._names = {id(child): name for name, child in module.named_modules()}

        def enter(child: nn.Module, _: Any) -> None:
            current = self._modules[-1] if self._modules else ""
            self._modules.append(self._names.get(id(child), current))

        def leave(child: nn.Module, _: Any, __: Any) -> None:
            self._modules.pop()

        before = nn.modules.module.register_module_forward_pre_hook(enter)
        after = nn.modules.module.register_module_forward_hook(leave, always_call=True)
        try:
            with self:
                yield
        finally:
            before.remove()
            after.remove()
            self._modules.clear()

    def forget(self) -> None:
        """Release the intermediate tensors that only the recording needed."""
        self._tainted.clear()
        self._logits.clear()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run one operation and note what it did."""
        kwargs = kwargs or {}
        if self._guard is not None:
            self._guard.check(func, args, kwargs)
        if func is F.multi_head_attention_forward:
            with self:  # its inner operations are seen
                return opened(func)(*args, **kwargs)
        if self._substitutes is None:
            result = func(*args, **kwargs)
        else:
            result = self._substitutes.run(func, args, kwargs)
        if func is Tensor.__setitem__:
            self.tape.trace.append(summary(func, args, kwargs))
            self._note_assignment(args)
            return result
        outputs = list(tensors_in(result)) if not isinstance(result, Tensor) else [result]
        if not outputs:
            return result
        inputs = [*tensors_in(args), *tensors_in(kwargs)]
        tainted = any(id(tensor) in self._tainted for tensor in inputs)
        if any(tensor.requires_grad for tensor in inputs):
            self.tape.trace.append(summary(func, args, kwargs))
        self._note_loss(func, args, kwargs, result)
        if func is F.batch_norm and self._normalises_batch(args, kwargs):
            self.tape.mixing.append(self._module() or "batch_norm")
        if tainted:
            self._tainted.update((id(tensor), tensor) for tensor in outputs)
        sources = [tensor for tensor in inputs if self._is_source(tensor)]
        if not sources or not torch.is_grad_enabled():
            return result
        others = any(t.requires_grad and not self._is_source(t) for t in inputs)
        if tainted or others:
            self._note_call(func, args, kwargs, outputs, tainted)
        else:
            for tensor in outputs:
                if tensor.requires_grad and id(tensor) not in self._sources:
                    self.tape.derived[id(tensor)] = tensor
        return result

    def _is_source(self, tensor: Tensor) -> bool:
        return id(tensor) in self._sources or id(tensor) in self.tape.derived

    def _module(self) -> str:
        return self._modules[-1] if self._modules else ""

    def _note_assignment(self, args: tuple[Any, ...]) -> None:
        target = args[0]
        if any(id(tensor) in self._tainted for tensor in tensors_in(args)):
            self._tainted[id(target)] = target
            self.tape.derived.pop(id(target), None)
        elif any(self._is_source(tensor) for tensor in tensors_in(args)):
            self.tape.derived[id(target)] = target

    def _note_call(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        outputs: list[Tensor],
        tainted: bool,
    ) -> None:
        places = tuple(
            Output(tensor.shape, get_gradient_edge(tensor)) if tensor.requires_grad else None
            for tensor in outputs
        )
        for tensor in outputs:
            self.tape.derived.pop(id(tensor), None)
        if any(place is not None for place in places):
            self.tape.calls.append(Call(func, args, kwargs, places, self._module(), tainted))

    def _note_loss(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any
    ) -> None:
        if func in LOG_SOFTMAX:
            self._logits[id(out)] = (out, args[0] if args else kwargs["input"])
        elif func in _RESHAPES and args and id(args[0]) in self._logits:
            logits = self._logits[id(args[0])][1]
            self._logits[id(out)] = (out, func(logits, *args[1:], **kwargs))
        elif func in LOSS_FUNCTIONS or func in OTHER_LOSSES:
            if not (isinstance(out, Tensor) and out.requires_grad):
                return
            if func not in LOSS_FUNCTIONS:
                self.tape.other_losses.append(OTHER_LOSSES[func])
                return
            self.tape.losses.append(self._read_loss(func, args, kwargs, out))

    def _read_loss(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        result: Tensor,
    ) -> RecordedLoss:
        name = LOSS_FUNCTIONS[func]
        bound = inspect.signature(func).bind(*args, **kwargs)
        bound.apply_defaults()
        options = dict(bound.arguments)
        outputs, target = (options.pop(each) for each in list(options)[:2])
        if name == "mse_loss" and not outputs.requires_grad:  # the same number either way round
            outputs, target = target, outputs
        average, reduce = options.pop("size_average", None), options.pop("reduce", None)
        if average is not None or reduce is not None:
            options["reduction"] = legacy_get_string(average, reduce, emit_warning=False)
        if name == "custom":
            reduction = options.get("reduction", "mean")
            options = {"function": partial(func, **options), "reduction": reduction}
        given = outputs
        if name == "nll_loss":
            outputs, options["traced"] = self._trace_logits(outputs)
        seen = versions(given, outputs, target)
        edge = get_gradient_edge(result)
        return RecordedLoss(name, given, outputs, target, options, result.clone(), edge, seen)

    def _trace_logits(self, log_probabilities: Tensor) -> tuple[Tensor, bool]:
        """The logits behind log-probabilities, if log_softmax was seen over the class axis."""
        found = self._logits.get(id(log_probabilities))
        if found is None:
            return log_probabilities, False
        logits = found[1]
        with torch.no_grad():
            again = logits.log_softmax(1 if logits.ndim > 1 else 0)
            same = again.shape == log_probabilities.shape and torch.allclose(
                again, log_probabilities, rtol=1e-4, atol=1e-5, equal_nan=True
            )
        return (logits, True) if same else (log_probabilities, False)

    @staticmethod
    def _normalises_batch(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        bound = inspect.signature(F.batch_norm).bind(*args, **kwargs)
        bound.apply_defaults()
        return bool(bound.arguments["training"])
