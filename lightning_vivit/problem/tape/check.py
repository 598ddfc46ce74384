"""Whether a recorded program is the step: its holes, found and named.

The program is run in training form with the recorded random numbers, and its loss and gradients are
compared bitwise with those of the step. What differs is put down to what was noted while recording.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_vivit.problem.tape.executor import execute, leaves, prepared
from lightning_vivit.problem.tape.program import Hole, Program


def check(
    program: Program, loss: Tensor, gradients: Mapping[str, Tensor | None] | None = None
) -> tuple[Hole, ...]:
    """Compare a program with the step that it was recorded from.

    Args:
        program: As it was recorded.
        loss: The step's loss.
        gradients: The loss's gradients by name of the parameter, such as those that the run's own
            backward pass left (of one step, without a scaler's factor). Leave out parameters with
            hooks of their own. None to compare the loss only.

    Returns:
        The holes; none if the program is the step. Costs a forward pass, and a backward pass with
        gradients.
    """
    if program.loss is None:
        missing = Hole("no loss", "the step returned no tensor as its loss")
        return tuple(hole for hole in program.holes if hole.slot is None) or (missing,)
    made = prepared(program, result=program.loss)
    certain = tuple(hole for hole in made.holes if hole.certain)
    if certain:
        return certain
    changed = [each for each in made.inputs.values() if each.is_changed()]
    gone = [each for each in made.inputs.values() if each.is_empty()]
    if gone:
        return tuple(
            Hole("empty storage", f"{each.name or each.role} has no numbers any more")
            for each in gone
        )
    try:
        difference = _difference(made, loss, gradients)
    except Exception as error:  # whatever an operation raises
        difference = f"an operation cannot be run again: {type(error).__name__}: {error}"
    if difference is None:
        return ()
    suspects = [hole for hole in made.holes if not hole.certain]
    suspects += [
        Hole("unseen write", f"{each.name or each.role} was changed by unseen code")
        for each in changed
    ]
    named = [hole._replace(message=f"{hole.message}: {difference}") for hole in suspects]
    return tuple(named) or (Hole("unknown", difference),)


def _difference(
    made: Program, loss: Tensor, gradients: Mapping[str, Tensor | None] | None
) -> str | None:
    """In what a program differs from its step; None if in nothing."""
    parameters = leaves(made)
    found = execute(made, parameters)
    if not _same(found, loss):
        return f"the loss is {found.item():.9g}, not {loss.item():.9g}"
    if gradients is None:
        return None
    wanted = [name for name in parameters if name in gradients and parameters[name].requires_grad]
    grads: tuple[Tensor | None, ...] = (None,) * len(wanted)
    if found.requires_grad and wanted:
        inputs = [parameters[name] for name in wanted]
        grads = torch.autograd.grad(found, inputs, allow_unused=True)
    known = dict(zip(wanted, grads, strict=True))
    for name, expected in gradients.items():
        grad = known.get(name)
        if not _same(_or_zero(grad, expected), _or_zero(expected, grad)):
            return f"the gradient of {name} differs"
    return None


def _or_zero(grad: Tensor | None, other: Tensor | None) -> Tensor | None:
    return torch.zeros_like(other) if grad is None and other is not None else grad


def _same(found: Tensor | None, expected: Tensor | None) -> bool:
    if found is None or expected is None:
        return found is expected
    found, expected = (t.detach().to_dense() if t.is_sparse else t for t in (found, expected))
    return bool(torch.equal(found.nan_to_num(nan=0.5), expected.nan_to_num(nan=0.5)))
