"""What a function of torch does besides returning a result: writes, draws, views.

Read from the schemas of torch's operations where they say it, and from short lists where a Python
function or an old schema hides it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

_OPERATORS = (torch._ops.OpOverload, torch._ops.OpOverloadPacket)
_ASSIGNMENTS = frozenset(
    ("__setitem__", *(f"__i{name}__" for name in ("add", "sub", "mul", "truediv", "pow", "mod")))
)
_FLAGS = frozenset(("requires_grad_", "detach_"))  # change no numbers
_IGNORED = frozenset(("retain_grad", "share_memory_", "backward", "register_hook"))
_IMPORTS = frozenset(("tensor", "as_tensor", "asarray", "new_tensor", "from_numpy", "frombuffer"))

# Running statistics: their positions. The flag that says whether they are written is at 5.
_STATISTICS: dict[Callable[..., Any], tuple[int, int]] = {
    F.batch_norm: (1, 2),
    F.instance_norm: (1, 2),
    torch.batch_norm: (3, 4),
    torch.instance_norm: (3, 4),
    torch.native_batch_norm: (3, 4),
}
_STATISTICS_NAMES = ("running_mean", "running_var")
_RENORMALISING = (F.embedding, F.embedding_bag)  # with max_norm, at 3

# Layers that draw; `eval()` switches most of them off.
_DRAWING_LAYERS = frozenset(
    (
        *("dropout", "dropout_", "dropout1d", "dropout2d", "dropout3d", "native_dropout"),
        *("alpha_dropout", "alpha_dropout_", "feature_alpha_dropout", "feature_alpha_dropout_"),
        *("feature_dropout", "feature_dropout_", "rrelu", "rrelu_", "scaled_dot_product_attention"),
        *("multi_head_attention_forward", "lstm", "gru", "rnn_tanh", "rnn_relu"),
        *("fractional_max_pool2d_with_indices", "fractional_max_pool3d_with_indices"),
    )
)


@dataclass(frozen=True, slots=True)
class Effects:
    """What one function does.

    Attributes:
        name: Its name.
        writes: Positions and names of arguments that it may write to.
        in_place: Whether these are all its tensors in the first argument, whatever its name.
        flags_only: Whether it changes flags of a tensor and no numbers.
        aliases: How many of its leading arguments its result may share memory with; -1 for all.
        draws: Whether it may take numbers from a random generator.
        noise: Whether these numbers are its result, which then depends on the dtype it is run in.
        imports: Whether it makes a tensor of what is none.
        ignored: Whether it does nothing that a program needs.
        collective: Whether it talks to other processes.
        special: Whether something has to be noted before it runs.
        apart: Whether it is not noted as others are.
    """

    name: str
    writes: tuple[tuple[int, str], ...] = ()
    in_place: bool = False
    flags_only: bool = False
    aliases: int = -1
    draws: bool = False
    noise: bool = False
    imports: bool = False
    ignored: bool = False
    collective: bool = False

    special: bool = field(init=False)
    apart: bool = field(init=False)

    def __post_init__(self) -> None:
        """Sum up."""
        special = bool(self.writes) or self.in_place or self.draws
        object.__setattr__(self, "special", special)
        object.__setattr__(self, "apart", self.imports or self.ignored or self.collective)

    def written(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> list[Any]:
        """The arguments that one call may write to.

        Args:
            function: The function.
            args: Tensors, or slots in their place.
            kwargs: The same by name.
        """
        found = [kwargs["out"]] if kwargs.get("out") is not None else []
        if self.in_place:
            found.append(args[0] if args else next(iter(kwargs.values())))
        if self.writes and _does_write(function, args, kwargs):
            for place, name in self.writes:
                value = args[place] if len(args) > place else kwargs.get(name)
                if value is not None:
                    found.append(value)
        return found


def _does_write(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> bool:
    if function in _STATISTICS:
        if len(args) > 5:
            return bool(args[5])
        otherwise = kwargs.get("use_input_stats", function is F.instance_norm)
        return bool(kwargs.get("training", otherwise))
    if function in _RENORMALISING:
        return (args[3] if len(args) > 3 else kwargs.get("max_norm")) is not None
    return True


def is_random(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> bool:
    """Whether one call of a function that may draw does; True where that is not known."""
    if function is F.scaled_dot_product_attention:
        return bool(args[4] if len(args) > 4 else kwargs.get("dropout_p", 0.0))
    return True


_KNOWN: dict[Callable[..., Any], Effects] = {}


def effects_of(function: Callable[..., Any]) -> Effects:
    """What a function does; remembered for those of torch."""
    found = _KNOWN.get(function)
    if found is None:
        found = _read(function)
        if isinstance(function, _OPERATORS) or _is_torch(function):
            _KNOWN[function] = found
    return found


def _is_torch(function: Callable[..., Any]) -> bool:
    module = getattr(function, "__module__", None)
    if module is None:  # methods and properties written in C
        return type(function).__name__ in ("method_descriptor", "method-wrapper")
    return module == "torch" or module.startswith("torch.")


def _read(function: Callable[..., Any]) -> Effects:
    if isinstance(function, _OPERATORS):
        return _of_operator(function)
    name = getattr(function, "__name__", "")
    if name in ("__get__", "__set__"):
        return _of_property(name, function)
    module = getattr(function, "__module__", None) or ""
    if module.startswith("torch.distributed"):
        return Effects(name, collective=True)
    if name in _IGNORED:
        return Effects(name, ignored=True)
    if function in _STATISTICS:
        places = zip(_STATISTICS[function], _STATISTICS_NAMES, strict=True)
        return Effects(name, writes=tuple(places), aliases=0)
    if function in _RENORMALISING:
        return Effects(name, writes=((1, "weight"),), aliases=0)
    known = _aten(name.strip("_") if name.startswith("__") else name)
    in_place = name in _ASSIGNMENTS or (name.endswith("_") and not name.startswith("__"))
    draws = name in _DRAWING_LAYERS or known.draws or module == "torch.nn.init"
    aliases = known.aliases
    if name == "__getitem__" or module == "torch.nn.functional":
        aliases = 1
    return Effects(
        name,
        in_place=in_place,
        flags_only=name in _FLAGS,
        aliases=aliases,
        draws=draws,
        noise=draws and name not in _DRAWING_LAYERS,
        imports=name in _IMPORTS,
    )


def _of_property(name: str, function: Any) -> Effects:
    """The getter or setter of an attribute of tensors."""
    attribute = getattr(getattr(function, "__self__", None), "__name__", "")
    if name == "__get__":
        return Effects(attribute, aliases=1, ignored=attribute in ("grad", "_grad"))
    if attribute == "data":
        return Effects("data", in_place=True, aliases=0)
    wanted = attribute == "requires_grad"
    return Effects(attribute, in_place=wanted, flags_only=wanted, aliases=0, ignored=not wanted)


def _of_operator(operator: Any) -> Effects:
    """An operation called through `torch.ops`."""
    overloads = [operator]
    if isinstance(operator, torch._ops.OpOverloadPacket):
        overloads = [getattr(operator, each) for each in operator.overloads()]
    writes: dict[tuple[int, str], None] = {}
    aliases = 0
    for overload in overloads:
        for place, argument in enumerate(overload._schema.arguments):
            if argument.alias_info is not None and not argument.is_out:
                aliases = max(aliases, place + 1)
                if argument.alias_info.is_write:
                    writes[place, argument.name] = None
    draws = any(torch.Tag.nondeterministic_seeded in each.tags for each in overloads)
    return Effects(str(operator), writes=tuple(writes), aliases=aliases, draws=draws)


class _Aten(NamedTuple):
    aliases: int
    draws: bool


@cache
def _aten(name: str) -> _Aten:
    """What the schemas of torch's own operations of one name say; all of it if there are none."""
    packet = getattr(torch.ops.aten, name, None) if name.isidentifier() else None
    if packet is None:
        return _Aten(-1, False)
    found = _of_operator(packet)
    return _Aten(found.aliases, found.draws)
