"""Refuse what BackPACK would get wrong, by inspection of the forward pass.

BackPACK sees modules only. An operation between them (a functional activation, a residual sum, a
transpose) makes it fail, or makes it silently wrong where a tensor keeps its address. So every
operation on the way from the parameters to the outputs has to happen inside a module that BackPACK
knows, each module has to run once, and nothing may work in place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchmetrics import Metric

from lightning_vivit.errors import ProblemError
from lightning_vivit.losses.known_losses import LOSS_FUNCTIONS
from lightning_vivit.problem.tape.recorder import LOG_SOFTMAX
from lightning_vivit.samples.batch import tensors_in

ADVICE = "Use backend='autograd', which works for any architecture."


def check_layers(layers: Mapping[str, nn.Module], supported: Collection[type[nn.Module]]) -> None:
    """Refuse layers that BackPACK has no rule for.

    Args:
        layers: The modules without children, by name.
        supported: Classes with a rule.

    Raises:
        ProblemError: Names the layers.
    """
    problems = []
    owners: dict[int, str] = {}
    for name, layer in layers.items():
        for parameter in layer.parameters():
            owner = owners.setdefault(id(parameter), name)
            if owner != name:
                problems.append(f"{owner!r} and {name!r} share a parameter")
        if any(True for _ in layer.parameters()) and type(layer) not in supported:
            problems.append(f"{name!r} is a {type(layer).__name__}, which BackPACK has no rule for")
        elif getattr(layer, "inplace", False):
            problems.append(f"{name!r} works in place, which BackPACK's hooks do not allow")
        elif getattr(layer, "padding_mode", "zeros") != "zeros":
            problems.append(f"{name!r} pads with {layer.padding_mode!r}, BackPACK only with zeros")
        elif getattr(layer, "_backpack_extend", False):
            problems.append(f"{name!r} is extended already")
    if problems:
        raise ProblemError(f"BackPACK cannot be used: {'; '.join(problems)}. {ADVICE}")


class Guard(TorchFunctionMode):
    """Watches one forward pass and notes what BackPACK does not see.

    Attributes:
        problems: What was found, for the error message.
    """

    def __init__(self, layers: Mapping[str, nn.Module], supported: Collection[type[nn.Module]]):
        """Prepare.

        Args:
            layers: The modules without children, by name.
            supported: Classes with a rule.
        """
        super().__init__()
        self.problems: list[str] = []
        self._names = {id(layer): name for name, layer in layers.items()}
        self._supported = supported
        self._inside = 0
        self._calls: Counter[str] = Counter()
        self._done = False

    @contextmanager
    def watch(self, root: nn.Module) -> Iterator[None]:
        """Watch what runs inside.

        Args:
            root: The module whose layers are watched.
        """
        handles = []
        for layer in root.modules():
            if id(layer) in self._names:
                handles.append(layer.register_forward_pre_hook(self._enter))
                handles.append(layer.register_forward_hook(self._leave, always_call=True))
        try:
            with self:
                yield
        finally:
            for handle in handles:
                handle.remove()

    def check(self) -> None:
        """Raise what was found.

        Raises:
            ProblemError: Names the operations and the layers.
        """
        twice = [name for name, count in self._calls.items() if count > 1]
        problems = [*dict.fromkeys(self.problems)]
        if twice:
            problems.append(f"the layers {', '.join(map(repr, twice))} run more than once")
        if problems:
            raise ProblemError(f"BackPACK cannot be used: {'; '.join(problems)}. {ADVICE}")

    def _enter(self, layer: nn.Module, inputs: Any) -> None:
        name = self._names[id(layer)]
        self._inside += 1
        if self._done or isinstance(layer, Metric):  # looks at the outputs, does not make them
            return
        self._calls[name] += 1
        differentiated = any(tensor.requires_grad for tensor in tensors_in(inputs))
        if not differentiated:
            return
        if type(layer) not in self._supported:
            self.problems.append(
                f"{name!r} is a {type(layer).__name__}, which BackPACK has no rule for"
            )
        elif limit := _limit(layer, tensors_in(inputs)):
            self.problems.append(f"{name!r} {limit}")

    def _leave(self, layer: nn.Module, inputs: Any, output: Any) -> None:
        self._inside -= 1

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run one operation; note it if it is outside every layer."""
        result = func(*args, **(kwargs or {}))
        if func in LOSS_FUNCTIONS or func in LOG_SOFTMAX:
            self._done = True  # the outputs are known, what follows belongs to the loss
        if self._inside == 0 and not self._done:
            found = [result] if isinstance(result, Tensor) else [*tensors_in(result)]
            if any(tensor.requires_grad and not tensor.is_leaf for tensor in found):
                name = getattr(func, "__name__", str(func))
                self.problems.append(f"the operation {name!r} runs outside of its layers")
        return result


def _limit(layer: nn.Module, inputs: Iterable[Tensor]) -> str | None:
    """What BackPACK cannot propagate through a layer that it has a rule for."""
    padding = getattr(layer, "padding", None)
    if isinstance(padding, str):
        return f"pads with {padding!r}, BackPACK only with numbers"
    if isinstance(layer, nn.modules.batchnorm._BatchNorm) and not layer.affine:
        return "is a normalisation with affine=False, BackPACK has only affine=True"
    if isinstance(layer, (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)):
        if layer.ceil_mode or not layer.count_include_pad or _divisor(layer) is not None:
            return "averages with ceil_mode, count_include_pad=False or divisor_override"
        default = torch.get_default_dtype()
        other = [tensor.dtype for tensor in inputs if tensor.dtype != default]
        if other:
            return f"averages in {other[0]}, BackPACK only in the default dtype, {default}"
    return None


def _divisor(layer: nn.Module) -> int | None:
    return getattr(layer, "divisor_override", None)
