"""Losses of the user: how a monitor sees them in `training_step`, and exact Hessians for them.

Choose `loss_function` for a loss that is written in Python; its Hessian is then taken by autograd.
Choose `register_loss` on top of it, or for a function of torch without a rule, where the Hessian is
known in closed form: it costs no double backward pass and keeps the accuracy of the formula.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch.overrides import resolve_name

from lightning_vivit.losses import SUPPORTED, LossRule, add_loss_rule, remove_loss_rule
from lightning_vivit.losses.known_losses import LOSS_FUNCTIONS
from lightning_vivit.problem.tape.operation import operation

_Function = TypeVar("_Function", bound=Callable[..., Any])
_Rule = TypeVar("_Rule", bound=LossRule)


def loss_function(function: _Function) -> _Function:
    """Make a Python function a loss that is seen where `training_step` calls it (decorator).

    The function is called as before. Without a rule of `register_loss` its Hessian is taken by
    autograd: D double backward passes through the function, not through the model.

    Args:
        function: ``function(outputs, target, ...)`` that returns a scalar, a mean over the samples
            or, with a parameter ``reduction`` that is ``"sum"``, a sum.

    Returns:
        The function.
    """
    visible = operation(function)
    LOSS_FUNCTIONS[visible] = "custom"
    return visible


def register_loss(function: Callable[..., Any]) -> Callable[[_Rule], _Rule]:
    """Register the exact per-sample quantities of a loss (decorator).

    Args:
        function: A loss of torch such as ``torch.nn.functional.poisson_nll_loss``, or a function
            with the decorator `loss_function`. Its first two parameters are outputs and target.

    Returns:
        The decorator of a rule ``rule(call, layout) -> SampleLoss``. The rule finds the outputs,
        the target and the other arguments in the call; where the Hessian is diagonal it returns
        `ElementwiseLoss.of_terms`.

    Raises:
        ValueError: The function has a rule already, or is neither of torch nor a `loss_function`.
    """
    if function not in LOSS_FUNCTIONS and resolve_name(function) is None:
        raise ValueError(
            f"{function!r} is not a function of torch, so its call is not seen in training_step. "
            "Put the decorator loss_function on it."
        )
    if LOSS_FUNCTIONS.get(function, "custom") != "custom":
        raise ValueError(
            f"{function!r} already has the rule of {LOSS_FUNCTIONS[function]!r}; one loss has one "
            "rule. Unregister the old one first."
        )

    def add(rule: _Rule) -> _Rule:
        name = _name(function)
        add_loss_rule(name, rule)
        LOSS_FUNCTIONS[function] = name
        return rule

    return add


def unregister_loss(function: Callable[..., Any]) -> None:
    """Forget the rule of `register_loss`; a `loss_function` then has its Hessian from autograd."""
    name = _name(function)
    if name in SUPPORTED or LOSS_FUNCTIONS.get(function) != name:
        return  # a rule of this package, or none
    remove_loss_rule(name)
    if resolve_name(function) is None:
        LOSS_FUNCTIONS[function] = "custom"
    else:
        del LOSS_FUNCTIONS[function]


def _name(function: Callable[..., Any]) -> str:
    """The name of a function of torch; a user's one with its module, so that it is its own."""
    if resolve_name(function) is not None:
        return function.__name__
    return f"{function.__module__}.{function.__qualname__}"
