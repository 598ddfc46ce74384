"""Which loss call makes the loss of a problem, and with which factor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_vivit.errors import ProblemError
from lightning_vivit.losses import SUPPORTED, LossCall
from lightning_vivit.recording import RecordedLoss, Recorder, Tape
from lightning_vivit.tracing import moves

_OWN_LOSS = (
    "Known losses: "
    + ", ".join(name for name in SUPPORTED if name != "custom")
    + " of torch.nn.functional (also through their nn modules). For another loss put the decorator "
    "lightning_vivit.loss_function on the function that computes it, or pass "
    "problem=lambda module, batch: Problem(module, loss_function, inputs, targets) to the monitor; "
    "its Hessian is then taken by autograd."
)


def explicit_loss(
    recorder: Recorder,
    function: Callable[[Tensor, Any], Tensor],
    outputs: Tensor,
    targets: Any,
    reduction: str | None,
) -> tuple[LossCall, Tensor]:
    """The loss call of an explicit problem.

    Args:
        recorder: That of the forward pass.
        function: ``loss(outputs, targets)``.
        outputs: What the model returned.
        targets: Passed to the loss.
        reduction: ``mean`` or ``sum``: how a custom loss reduces over the samples; None reads
            ``function.reduction`` and falls back to ``mean``.

    Returns:
        A known loss where the function calls one on the outputs themselves, in any shape, and
        otherwise the function as a custom loss; and its value with the graph.

    Raises:
        ProblemError: The function returned no tensor.
    """
    before = len(recorder.tape.trace)
    with recorder:
        value = function(outputs, targets)
    if not isinstance(value, Tensor):
        raise ProblemError(
            f"The loss returned {type(value).__name__}, expected a tensor. "
            "Give a function loss(outputs, targets) -> tensor."
        )
    tape = recorder.tape
    known = [call for call in tape.losses if _is_rearranged(call.outputs, outputs)]
    moved = any(moves(entry[0]) for entry in tape.trace[before:])
    if len(tape.losses) == len(known) == 1 and not tape.other_losses and not moved:
        call = known[0]
        if call.result is value:
            return LossCall(call.name, call.outputs, call.target, call.options), value
        multiplier = _multiplier(value, call)
        if multiplier is not None and value.ndim == 0:
            found = LossCall(call.name, call.outputs, call.target, call.options, multiplier)
            return found, value
    reduction = reduction or getattr(function, "reduction", None) or "mean"
    options = {"function": function, "reduction": reduction}
    return LossCall("custom", outputs, targets, options), value


def replayed_loss(returned: Any, tape: Tape, name: str) -> tuple[LossCall, Tensor]:
    """The one loss call that the returned loss is made of.

    Args:
        returned: What training_step returned.
        tape: Its recording.
        name: Of the module, for messages.

    Returns:
        The call with its factor in the returned loss, and the returned loss with its graph.

    Raises:
        ProblemError: No known loss, several, or one that the returned loss does not scale with.
    """
    loss = returned.get("loss") if isinstance(returned, Mapping) else returned
    if not isinstance(loss, Tensor):
        raise ProblemError(
            f"training_step of {name} returned {type(returned).__name__} on this batch, expected "
            "a loss tensor or a dict with one under 'loss'. Monitor a batch on which the step "
            "does not skip."
        )
    used = [(call, _multiplier(loss, call)) for call in tape.losses if _influences(loss, call)]
    unknown = ", ".join(dict.fromkeys(tape.other_losses))
    if len(used) > 1:
        names = ", ".join(call.name for call, _ in used)
        raise ProblemError(
            f"training_step of {name} returns a loss made of {len(used)} loss calls ({names}); "
            f"which outputs to differentiate is ambiguous. Supported: one. {_OWN_LOSS}"
        )
    if not used:
        formula = (
            "No loss call was seen. A formula that is written out, such as ((f - y) ** 2).mean(), "
            "is not one: call torch.nn.functional.mse_loss(f, y)."
        )
        seen = f"It called {unknown}, which has no rule." if unknown else formula
        raise ProblemError(f"training_step of {name}: unknown loss. {seen} {_OWN_LOSS}")
    call, multiplier = used[0]
    if isinstance(call.target, Tensor) and call.target.requires_grad:
        raise ProblemError(
            f"The target of {call.name} in training_step of {name} depends on the parameters, so "
            f"the loss is not a function of the outputs alone. Detach the target, or: {_OWN_LOSS}"
        )
    if multiplier is None:
        extra = f" (it also called {unknown})" if unknown else ""
        raise ProblemError(
            f"training_step of {name} uses {call.name}, but the returned loss depends on the "
            f"outputs in a further way or is not linear in it{extra}, so it is another loss. "
            f"{_OWN_LOSS}"
        )
    options = dict(call.options)
    return LossCall(call.name, call.outputs, call.target, options, multiplier), loss


def _is_rearranged(found: Tensor, outputs: Tensor) -> bool:
    """Whether a tensor has the entries of the outputs, in any shape and order."""
    if found is outputs:
        return True
    if found.numel() != outputs.numel():
        return False
    cotangent = torch.rand_like(found)
    (grad,) = torch.autograd.grad(found, outputs, cotangent, retain_graph=True, allow_unused=True)
    same = [tensor.detach().flatten().sort().values for tensor in (found, outputs)]
    if grad is None or not torch.equal(*same):
        return False
    return torch.equal(grad.flatten().sort().values, cotangent.flatten().sort().values)


def _influences(loss: Tensor, call: RecordedLoss) -> bool:
    if call.result is loss:
        return True
    (grad,) = torch.autograd.grad(loss.sum(), call.result, retain_graph=True, allow_unused=True)
    return grad is not None and bool(grad.any())


def _multiplier(loss: Tensor, call: RecordedLoss) -> float | Tensor | None:
    """D loss / d call.result, or None if the loss is not this multiple of the call alone."""
    if call.result is loss:
        return 1.0
    total = loss.sum()
    (weights,) = torch.autograd.grad(
        total, call.result, retain_graph=True, allow_unused=True, create_graph=True
    )
    if weights is None:
        return None
    if weights.requires_grad:
        (bend,) = torch.autograd.grad(
            weights.sum(), call.result, retain_graph=True, allow_unused=True
        )
        if bend is not None and bool(bend.any()):
            return None
        weights = weights.detach()
    (whole,) = torch.autograd.grad(total, call.outputs, retain_graph=True)
    (part,) = torch.autograd.grad((call.result * weights).sum(), call.outputs, retain_graph=True)
    scale = part.abs().max()
    limit = 1e-3 if part.dtype != torch.float64 else 1e-9
    if bool(((whole - part).abs() > limit * scale).any()):
        return None
    return weights if weights.ndim > 0 else float(weights)
