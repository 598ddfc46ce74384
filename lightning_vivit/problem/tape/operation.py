"""Make a Python function visible to the recorder, or what runs inside of one."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

_Function = TypeVar("_Function", bound=Callable[..., Any])


def operation(function: _Function) -> _Function:
    """Make a Python function a single operation, so that it can have a rule (decorator).

    Without it the recorder sees the functions of torch that the function calls, and what is hidden
    in an `autograd.Function` is computed densely. The function is called as before.

    Args:
        function: Combines parameters with data.

    Returns:
        The function.
    """

    @functools.wraps(function)
    def visible(*args: Any, **kwargs: Any) -> Any:
        tensors = tuple(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor))
        if has_torch_function(tensors):
            return handle_torch_function(visible, tensors, *args, **kwargs)
        return function(*args, **kwargs)

    return visible  # type: ignore[return-value]


@functools.cache
def opened(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of `torch.nn.functional` that shows an active mode what it does inside.

    Such a function asks first whether a mode is active and hands itself over. The copy of it that
    is made here takes the answer to be no.

    Args:
        function: A Python function with that question.

    Returns:
        A function with the same code.
    """

    def no(*_: Any) -> bool:
        return False

    questions = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")
    scope = {**function.__globals__, **dict.fromkeys(questions, no)}  # type: ignore[attr-defined]
    made = types.FunctionType(
        function.__code__,  # type: ignore[attr-defined]
        scope,
        function.__name__,
        function.__defaults__,  # type: ignore[attr-defined]
        function.__closure__,  # type: ignore[attr-defined]
    )
    made.__kwdefaults__ = function.__kwdefaults__  # type: ignore[attr-defined]
    return made
