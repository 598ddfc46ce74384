"""Which loss call makes the loss of a problem, and with which factor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_vivit.errors import ProblemError
from lightning_vivit.losses import SUPPORTED, LossCall
from lightning_vivit.problem.tape.graph import graph_nodes
from lightning_vivit.problem.tape.loss_calls import RecordedLoss
from lightning_vivit.problem.tape.recorder import Call, Recorder, Tape
from lightning_vivit.problem.tape.summary import moves

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
    entered = [_of_outputs(call, outputs) for call in tape.losses]
    moved = any(moves(entry[0]) for entry in tape.trace[before:])
    if len(entered) == 1 and entered[0] is not None and not tape.other_losses and not moved:
        call, multiplier = tape.losses[0], None
        _check_constant(call, "the loss function")
        if value.ndim == 0 or call.is_whole(value):
            multiplier = _multiplier(value, call)
        if multiplier is not None and _bypass(value, call, tape) is None:
            options = dict(call.options)
            if call.name == "nll_loss":
                options["traced"] = options["traced"] and entered[0] is call.outputs
            return LossCall(call.name, entered[0], call.target, options, multiplier), value
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
    used = [call for call in tape.losses if _influences(loss, call)]
    unknown = ", ".join(dict.fromkeys(tape.other_losses))
    if len(used) > 1:
        names = ", ".join(call.name for call in used)
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
    call, step = used[0], f"training_step of {name}"
    _check_constant(call, step)
    multiplier = _multiplier(loss, call)
    if multiplier is None:
        extra = f" (it also called {unknown})" if unknown else ""
        raise ProblemError(
            f"{step} uses {call.name}, but the returned loss depends on the "
            f"outputs in a further way or is not linear in it{extra}, so it is another loss. "
            f"{_OWN_LOSS}"
        )
    other = _bypass(loss, call, tape)
    if other is not None:
        place = f"{other.name} in {other.module}" if other.module else other.name
        raise ProblemError(
            f"{step} returns more than {call.name}: the loss depends on the outputs or on hidden "
            f"features in a further way (through {place}), which the curvature would leave out. "
            "Let one function compute the whole loss from all outputs that it needs, stacked in "
            f"one tensor. {_OWN_LOSS}"
        )
    options = dict(call.options)
    return LossCall(call.name, call.outputs, call.target, options, multiplier), loss


def _of_outputs(call: RecordedLoss, outputs: Tensor) -> Tensor | None:
    """What a loss call got, if these are the entries of the outputs; else None.

    For nll_loss the outputs are the logits, or the log-probabilities where the model returns them.
    """
    return next(
        (each for each in (call.outputs, call.given) if _is_rearranged(each, outputs)), None
    )


def _is_rearranged(found: Tensor, outputs: Tensor) -> bool:
    """Whether a tensor has the entries of the outputs, in any shape and order."""
    if found is outputs:
        return True
    if found.numel() != outputs.numel():
        return False
    cotangent = torch.rand_like(found)
    (grad,) = torch.autograd.grad(found, outputs, cotangent, retain_graph=True, allow_unused=True)
    if grad is None or not _same_entries(found.detach(), outputs.detach()):
        return False
    return _same_entries(cotangent, grad)


def _same_entries(found: Tensor, outputs: Tensor) -> bool:
    """Whether two tensors have the same entries, and those of each sample in the same place.

    The samples are the rows of the one with fewer rows; the other one may have several rows for
    each, in either order. Where the rows do not divide, only the entries are compared.
    """
    few, many = sorted((found, outputs), key=len)
    count = len(few)
    if len(many) % count:
        return _equal_sorted(few.flatten(), many.flatten())
    blocks = [many, many.reshape(-1, count, *many.shape[1:]).transpose(0, 1)]
    samples = few.reshape(count, -1)
    return any(_equal_sorted(samples, block.reshape(count, -1)) for block in blocks)


def _equal_sorted(left: Tensor, right: Tensor) -> bool:
    return torch.equal(left.sort(-1).values, right.sort(-1).values)


def _influences(loss: Tensor, call: RecordedLoss) -> bool:
    if call.is_whole(loss):
        return True
    (grad,) = torch.autograd.grad(loss.sum(), call.edge, retain_graph=True, allow_unused=True)
    return grad is not None and bool(grad.any())


def _check_constant(call: RecordedLoss, place: str) -> None:
    """Refuse a call whose arguments, other than the outputs, are not what they seem.

    Args:
        call: The loss call.
        place: Where it was seen, for messages.

    Raises:
        ProblemError: An argument depends on parameters, or was overwritten.
    """
    arguments = {"target": call.target, **call.options}
    for key, value in arguments.items():
        if isinstance(value, Tensor) and value.requires_grad:
            raise ProblemError(
                f"The {key} of {call.name} in {place} depends on the parameters, so "
                f"the loss is not a function of the outputs alone. Detach it, or: {_OWN_LOSS}"
            )
    if call.overwritten:
        raise ProblemError(
            f"The outputs or the target of {call.name} in {place} are changed in place after the "
            "call, so what the loss saw is gone. Change a copy (`outputs.detach().clone()`)."
        )


def _multiplier(loss: Tensor, call: RecordedLoss) -> float | Tensor | None:
    """D loss / d call.result, or None if the loss is not this multiple of the call alone."""
    if call.is_whole(loss):
        return 1.0
    total = loss.sum()
    (weights,) = torch.autograd.grad(
        total, call.edge, retain_graph=True, allow_unused=True, create_graph=True
    )
    if weights is None:
        return None
    if weights.requires_grad:
        probe = torch.rand_like(weights)  # a plain sum would miss weights with a constant sum
        (bend,) = torch.autograd.grad(
            weights, call.edge, probe, retain_graph=True, allow_unused=True
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


def _bypass(loss: Tensor, call: RecordedLoss, tape: Tape) -> Call | None:
    """The last operation on parameters and data that the loss needs without its call, or None.

    The graph tells it also where the gradient of the further part happens to vanish, as that of a
    penalty on outputs that are zero. Terms of the parameters alone have no such operation.
    """
    # What leads to the loss call, such as its sum with a penalty on the parameters, is no bypass.
    users: dict[Any, list[Any]] = {}
    seen = {call.edge.node}
    for node in graph_nodes(loss, without=seen):
        seen.add(node)
        for following, _ in node.next_functions:
            users.setdefault(following, []).append(node)
    trunk, waiting = set(), [call.edge.node]
    while waiting:
        node = waiting.pop()
        if node not in trunk:
            trunk.add(node)
            waiting.extend(users.get(node, []))
    others = seen - trunk
    for each in reversed(tape.calls):
        places = [output.edge.node for output in each.outputs if output is not None]
        if each.tainted and not others.isdisjoint(places):
            return each
    return None
