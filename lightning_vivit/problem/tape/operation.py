"""Make a Python function visible to the recorder."""

from __future__ import annotations

import functools
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
