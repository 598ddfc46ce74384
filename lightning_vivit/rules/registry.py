"""Registry of operation rules.

A rule turns one recorded operation and its backpropagated columns into factors of the parameters
that the operation used. It is one pure function with one signature:

    rule(use: Use) -> list[tuple[Tensor, Factor]] | None

The tensors are those of the call's arguments for which ``use.wants(tensor)`` is true. None means
that the rule does not cover this configuration; the dense rule then takes the operation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lightning_vivit.factors import Factor
from lightning_vivit.problem.tape.recorder import Call
from lightning_vivit.samples.axis import SampleAxis


@dataclass(frozen=True)
class Use:
    """One call together with the columns that arrived at its (first) output.

    Attributes:
        call: The recorded operation.
        axis: Where the samples are in the output.
        columns: [N, D, *shape], the backpropagated columns with the samples moved to the front;
            *shape is the output's shape with T positions left on the sample axis.
        sources: ids of the tensors for which factors are wanted.
        cache: Kept between the columns of one call; see `once`.
    """

    call: Call
    axis: SampleAxis
    columns: Tensor
    sources: frozenset[int]
    cache: dict[str, Tensor] = field(default_factory=dict)

    def once(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """What does not depend on the columns, made at the first of them and kept for the others.

        Args:
            name: A name that is unique in the rule.
            make: Makes the tensor, without a graph.

        Returns:
            The tensor.
        """
        if name not in self.cache:
            with torch.no_grad():
                self.cache[name] = make()
        return self.cache[name]

    def wants(self, tensor: Any) -> bool:
        """Whether a factor is wanted for this argument."""
        return isinstance(tensor, Tensor) and id(tensor) in self.sources

    def arguments(self, *names: str, **defaults: Any) -> list[Any]:
        """Arguments of the call by name, for functions without an inspectable signature.

        Args:
            *names: The parameter names of the function in their order.
            **defaults: Default values by name; None where missing.

        Returns:
            One value for each name.
        """
        return self.call.arguments(*names, **defaults)


Rule = Callable[[Use], "list[tuple[Tensor, Factor]] | None"]
_RULES: dict[Callable[..., Any], Rule] = {}


def register_rule(*functions: Callable[..., Any]) -> Callable[[Rule], Rule]:
    """Register a rule for torch functions (decorator).

    Args:
        *functions: The functions as a `TorchFunctionMode` sees them, such as
            ``torch.nn.functional.linear``, or functions with the decorator `operation`.

    Returns:
        The decorator; it returns the rule unchanged.

    Raises:
        ValueError: A function has a rule already.
    """

    def add(rule: Rule) -> Rule:
        for function in functions:
            if function in _RULES:
                raise ValueError(
                    f"{function} already has the rule {_RULES[function].__name__}; "
                    "one operation has one rule. Unregister the old one first."
                )
            _RULES[function] = rule
        return rule

    return add


def unregister_rule(function: Callable[..., Any]) -> None:
    """Forget the rule of a function; it is then handled by the dense rule."""
    _RULES.pop(function, None)


def find_rule(function: Callable[..., Any]) -> Rule | None:
    """The rule of a function, or None."""
    return _RULES.get(function)
