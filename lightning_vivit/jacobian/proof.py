"""Proof of what the factors rely on: where the samples are, and that every row is at its own.

At the first use of a structure the cotangents of parts of the batch are followed through all
recorded operations, and every parameter's factor is compared with autograd under random weights of
the samples. A parameter whose factor does not agree is computed densely. The proof is remembered
with everything that Python saw of the forward pass, contents of index tensors included, and made
again from time to time, since a product with a matrix that depends on the data leaves no trace.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from lightning_vivit.errors import InteractionError, ProblemError
from lightning_vivit.jacobian.probing import Place, halves, make_probe, mismatch, tolerance
from lightning_vivit.jacobian.structure import Structure
from lightning_vivit.jacobian.structured import structured_factors
from lightning_vivit.jacobian.trust import Proofs, signature
from lightning_vivit.problem.tape.cotangents import batched_grad
from lightning_vivit.problem.tape.recorder import Call, Tape
from lightning_vivit.samples.axis import SampleAxis, candidate_axes, likely_counts
from lightning_vivit.samples.batch import tensors_in

_log = logging.getLogger(__name__)
_PROOFS: Proofs[Structure] = Proofs()


def prove_structure(tape: Tape, outputs: Tensor, axis: SampleAxis, model: nn.Module) -> Structure:
    """Sample axes of all calls and the coverage of all parameters, proved once per structure.

    Args:
        tape: The recording.
        outputs: The differentiated outputs.
        axis: Where the samples are in the outputs.
        model: The model; the proof is remembered as long as it lives.

    Returns:
        The structure.

    Raises:
        InteractionError: Samples influence each other.
    """
    refuse_mixing(tape, axis.num_samples)
    key = (*signature(tape, outputs, model), axis)
    return _PROOFS.get(model, key, lambda: _prove(tape, outputs, axis))


def refuse_mixing(tape: Tape, num_samples: int) -> None:
    """Refuse batch normalisation in training mode.

    Args:
        tape: The recording.
        num_samples: N.

    Raises:
        InteractionError: Names the modules.
    """
    if tape.mixing and num_samples > 1:
        raise InteractionError(_mixing_message(tape.mixing))


def locate_samples(
    tape: Tape, outputs: Tensor, sizes: Sequence[int], model: nn.Module
) -> tuple[SampleAxis, Structure]:
    """How samples and positions share the first axis of the outputs, proved by probing.

    Args:
        tape: The recording.
        outputs: The differentiated outputs, [N, ...] or [N * T, ...] in either order.
        sizes: Leading sizes of the batch's tensors; one of them is N.
        model: The model.

    Returns:
        The sample axis of the outputs and the proved structure.

    Raises:
        InteractionError: Samples influence each other.
        ProblemError: The outputs are empty.
    """
    rows = outputs.shape[0]
    if rows == 0:
        raise ProblemError("The outputs are empty: the batch has no sample.")
    axes = []
    for count in likely_counts(sizes, rows):
        axes.append(SampleAxis(0, count))
        if 1 < count < rows:
            axes.append(SampleAxis(0, count, minor=True))
    first: InteractionError | None = None
    possible: list[tuple[SampleAxis, Structure]] = []
    for axis in axes:
        try:
            structure = prove_structure(tape, outputs, axis, model)
        except InteractionError as error:
            first = first or error
            continue
        if not structure.astray:
            return axis, structure
        possible.append((axis, structure))
    if possible:
        return possible[0]
    assert first is not None
    raise first


def _prove(tape: Tape, outputs: Tensor, axis: SampleAxis) -> tuple[Structure, bool]:
    """The structure, and whether every sample reached every operation.

    Where a sample sent no gradient (a dead unit), the axis is the likely one, and the proof holds
    for this batch only.
    """
    axes, usable, certain, astray = _locate_calls(tape, outputs, axis)
    probe = make_probe(outputs, axis)
    parameters = list(tape.parameters.values())
    expected = batched_grad([outputs], parameters, [probe.columns])
    unused = tuple(
        name for name, grad in zip(tape.parameters, expected, strict=True) if grad is None
    )
    draft = Structure(axes, usable, (), unused)
    names = [name for name in tape.parameters if name not in unused]
    factors = structured_factors(tape, outputs, draft, probe.columns[1:], names)
    limit = tolerance([outputs, *parameters])
    norms = [float(grad.norm()) for grad in expected if grad is not None]
    floor = 1e-6 * max(norms, default=0.0)
    weights = torch.stack([probe.weights, torch.ones_like(probe.weights)], dim=1)[:, None]
    dense = []
    for name, grad in zip(tape.parameters, expected, strict=True):
        if name in unused:
            continue
        factor = factors.get(name)
        found = None if factor is None else factor.weighted_sum(weights.to(grad))
        if mismatch(grad, found, floor) > limit:
            dense.append(name)
    if dense:
        _log.info("No structured Jacobian for %s: computed as dense rows.", ", ".join(dense))
    return Structure(axes, usable, tuple(dense), unused, astray), certain


def _locate_calls(
    tape: Tape, outputs: Tensor, axis: SampleAxis
) -> tuple[tuple[tuple[SampleAxis | None, ...], ...], tuple[bool, ...], bool, bool]:
    """Sample axes of all calls, which calls have them, whether every sample was seen, or astray.

    Raises:
        InteractionError: Samples influence each other.
    """
    edges, places = _edges(tape)
    shapes = [out.shape for call in tape.calls for out in call.outputs if out is not None]
    found = [Place(shape, axis.num_samples) for shape in shapes]
    arrived = [False] * len(edges)
    for columns, member in halves(outputs, axis) if edges else ():
        for index, grads in enumerate(batched_grad([outputs], edges, [columns])):
            if grads is not None:
                arrived[index] = True
                found[index].look(grads, member)
    axes, usable, astray = [], [], False
    for call, outlets in zip(tape.calls, places, strict=True):
        live = [place for place in outlets if place is not None and arrived[place]]
        for place in live:
            unlocated = call.tainted and not found[place].axes and found[place].can_hold
            if unlocated and _takes_samples(call, tape, axis.num_samples):
                if found[place].mixed:
                    raise InteractionError(_interaction_message(call))
                astray = True
        known = [
            found[place].axes[0] if place in live and found[place].axes else None
            for place in outlets
        ]
        axes.append(tuple(known))
        complete = bool(live) and sum(item is not None for item in known) == len(live)
        usable.append(complete and not call.is_complex)
    certain = all(place.certain() for place, seen in zip(found, arrived, strict=True) if seen)
    return tuple(axes), tuple(usable), certain, astray


def _takes_samples(call: Call, tape: Tape, num_samples: int) -> bool:
    """Whether a tensor with room for the samples enters, other than those made of parameters."""
    own = {*map(id, tape.parameters.values()), *tape.derived}
    inputs = [t for t in tensors_in([call.args, call.kwargs]) if id(t) not in own]
    return any(candidate_axes(tuple(tensor.shape), num_samples) for tensor in inputs)


def _edges(tape: Tape) -> tuple[list[GradientEdge], list[list[int | None]]]:
    """All gradient edges of the calls, and for each call's outputs their places in the list."""
    edges: list[GradientEdge] = []
    places: list[list[int | None]] = []
    for call in tape.calls:
        row: list[int | None] = []
        for output in call.outputs:
            if output is None:
                row.append(None)
                continue
            row.append(len(edges))
            edges.append(output.edge)
        places.append(row)
    return edges, places


def _mixing_message(modules: list[str]) -> str:
    names = ", ".join(repr(name) for name in dict.fromkeys(modules))
    return (
        f"The batch normalisation in {names} runs in training mode, so the samples of the batch "
        "influence each other and exact per-sample factors do not exist. Supported: batch "
        "normalisation in eval mode with running statistics. Call model.eval() before, or use "
        "GroupNorm or LayerNorm."
    )


def _interaction_message(call: Call) -> str:
    where = f"module {call.module!r}" if call.module else "the model"
    return (
        f"The samples of the batch influence each other: the output of {call.name} in {where} "
        "receives gradients from different samples in the same place. Exact "
        "per-sample factors exist only where each output depends on its own sample. Put the "
        "model into eval mode, or remove the operation after this layer that mixes samples "
        "(normalisation over the batch, contrastive similarities, batch statistics)."
    )
