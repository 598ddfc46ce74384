"""What torch operations do not show: where a tensor from nowhere came from, and what has to hide.

Compiled code must not see a mode (it would be compiled again), and layers of transformers leave
their fast path in evaluation mode while one is active, which changes the last bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._dynamo.eval_frame import OptimizedModule
from torch.autograd.function import BackwardCFunction

from lightning_vivit.problem.tape.program import Hole
from lightning_vivit.problem.tape.surroundings import tensors_among

_FAST = (nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.MultiheadAttention)
_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor
_FUNCTIONS = {
    "CheckpointFunctionBackward": ("reentrant checkpoint", "checkpoint(..., use_reentrant=True)"),
    "BackwardHookFunctionBackward": ("hooks", "a full backward hook of a module"),
    "CompiledFunctionBackward": ("compiled code", "a compiled function"),
}


class HiddenPart(NamedTuple):
    """A callable attribute of a submodule that must run, or may have to, without a mode.

    Attributes:
        module: The submodule.
        attribute: Of the instance.
        always: Whether it always hides; if not, only where nothing in it needs a gradient.
    """

    module: nn.Module
    attribute: str
    always: bool

    @contextmanager
    def wrapped(self, hide: Callable[[], Any]) -> Iterator[None]:
        """Give the instance the attribute of its own that hides, and take it away afterwards.

        Args:
            hide: Makes a context in which no mode is active.
        """
        own = vars(self.module)
        had = self.attribute in own
        original = getattr(self.module, self.attribute)

        def hidden(*args: Any, **kwargs: Any) -> Any:
            if not self.always and self._needs_gradient(args, kwargs):
                return original(*args, **kwargs)
            with hide():
                return original(*args, **kwargs)

        own[self.attribute] = hidden
        try:
            yield
        finally:
            if had:
                own[self.attribute] = original
            else:
                del own[self.attribute]

    def _needs_gradient(self, *values: Any) -> bool:
        if self.module.training:
            return True
        tensors = [*self.module.parameters(), *tensors_among(values)]
        return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def hidden_parts(module: nn.Module) -> list[HiddenPart]:
    """The parts of a module around which a mode must not be active, outermost only."""
    found: dict[int, HiddenPart] = {}
    waiting: list[nn.Module | None] = [module]
    while waiting:
        child = waiting.pop()
        if child is None:
            continue
        if isinstance(child, OptimizedModule):
            found[id(child)] = HiddenPart(child, "forward", True)
        elif child._compiled_call_impl is not None:
            found[id(child)] = HiddenPart(child, "_compiled_call_impl", True)
        else:
            if isinstance(child, _FAST):
                found[id(child)] = HiddenPart(child, "forward", False)
            if child._modules:
                waiting.extend(child._modules.values())
    return list(found.values())


def names_of(module: nn.Module) -> dict[int, tuple[str, str]]:
    """Id of each parameter and buffer -> its role and its first qualified name."""
    names: dict[int, tuple[str, str]] = {}
    waiting: list[tuple[str, nn.Module | None]] = [("", module)]
    seen = set()
    while waiting:
        prefix, child = waiting.pop()
        if child is None or id(child) in seen:
            continue
        seen.add(id(child))
        for name, tensor in child._parameters.items():
            names.setdefault(id(tensor), ("parameter", prefix + name))
        for name, buffer in child._buffers.items():
            names.setdefault(id(buffer), ("buffer", prefix + name))
        if child._modules:
            inner = [(f"{prefix}{name}.", each) for name, each in child._modules.items()]
            waiting.extend(reversed(inner))
    return names


def is_constant(tensor: Tensor) -> bool:
    """Whether a tensor from outside is a plain value without a history."""
    return tensor.grad_fn is None and not _is_wrapped(tensor)


def origin(tensor: Tensor, module: nn.Module) -> Hole:
    """The hole that a tensor came out of which no operation made and which is no constant.

    Args:
        tensor: The tensor.
        module: The module that runs.
    """
    if tensor.grad_fn is None or _is_wrapped(tensor):
        return Hole("torch.func", "a transformation such as torch.func.vmap inside the step")
    known = function_hole(tensor)
    if known is not None:
        return known
    for kind, is_opaque in (("TorchScript", _is_scripted), ("compiled code", _is_compiled)):
        parts = [name for name, child in module.named_modules() if is_opaque(child)]
        if parts:
            outermost = [n or "it" for n in parts if not any(n.startswith(f"{o}.") for o in parts)]
            return Hole(kind, f"{kind} in {', '.join(outermost)}")
    made = tensor.grad_fn.name()
    return Hole("unseen code", f"a tensor with {made} that no operation made in this thread")


def _is_scripted(module: nn.Module) -> bool:
    return isinstance(module, torch.jit.ScriptModule)


def _is_compiled(module: nn.Module) -> bool:
    marks = vars(module)
    own = isinstance(module, OptimizedModule) or marks.get("_compiled_call_impl") is not None
    return own or is_compiled_whole(module)


def is_compiled_whole(module: nn.Module) -> bool:
    """Whether a LightningModule was compiled with all its steps."""
    return vars(module).get("_compiler_ctx") is not None


def function_hole(tensor: Tensor) -> Hole | None:
    """The hole of a tensor whose backward pass is Python code or compiled; None if it is not."""
    node = tensor.grad_fn
    name = type(node).__name__
    if name in _FUNCTIONS:
        return Hole(*_FUNCTIONS[name])
    if not isinstance(node, BackwardCFunction):
        return None
    return Hole("autograd.Function", f"the autograd.Function {name.removesuffix('Backward')}")
