"""Jacobian factors for any architecture, from the recorded operations and autograd.

This is the default backend. One batched backward pass brings all columns to the outputs of the
recorded operations, a rule turns each operation's columns into factors, and what no rule knows
is computed as dense rows. At the first use of a structure every parameter's factor is compared
with autograd on random cotangents; a parameter whose factor does not agree is computed densely.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from lightning_vivit.axes import SampleAxis
from lightning_vivit.backends.probing import (
    find_axis,
    make_probe,
    mismatch,
    overlap,
    tolerance,
)
from lightning_vivit.backends.sweep import Collector, sweep
from lightning_vivit.batched import batched_grad
from lightning_vivit.errors import InteractionError, ProblemError
from lightning_vivit.factors import Dense, Factor, add_uses
from lightning_vivit.recording import Call, Tape, tensors_in

_log = logging.getLogger(__name__)
_CHUNK_ENTRIES = 1 << 24


@dataclass(frozen=True)
class Structure:
    """What is known about a recorded forward pass once it was proved.

    Attributes:
        axes: For each call, the sample axis of each output (None: nothing arrives there).
        usable: For each call, whether its columns have a sample axis.
        dense: Names of the parameters that are computed as rows through the whole graph.
        unused: Names of the parameters that do not influence the outputs.
    """

    axes: tuple[tuple[SampleAxis | None, ...], ...]
    usable: tuple[bool, ...]
    dense: tuple[str, ...]
    unused: tuple[str, ...]


_PROVED: WeakKeyDictionary[nn.Module, dict[object, Structure]] = WeakKeyDictionary()


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
    key = _signature(tape, outputs, axis)
    known = _PROVED.setdefault(model, {})
    if key in known:
        return known[key]
    structure, certain = _prove(tape, outputs, axis)
    if certain:
        known[key] = structure
    return structure


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


def jacobian_factors(
    tape: Tape,
    outputs: Tensor,
    axis: SampleAxis,
    structure: Structure,
    columns: Tensor,
    names: Sequence[str] | None = None,
) -> dict[str, Factor]:
    """Factors of all parameters for given columns.

    Args:
        tape: The recording.
        outputs: The differentiated outputs, graph attached.
        axis: Where the samples are in the outputs.
        structure: The proved structure.
        columns: [D, *outputs shape].
        names: Restrict the work to these parameters.

    Returns:
        Parameter name -> factor; parameters that do not influence the outputs are left out.
    """
    wanted = [name for name in (names or tape.parameters) if name not in structure.unused]
    dense = [name for name in wanted if name in structure.dense]
    structured = [name for name in wanted if name not in structure.dense]
    factors = _structured_factors(tape, outputs, structure, columns, structured)
    factors.update(_graph_rows(tape, outputs, axis, columns, dense))
    return {name: factors[name] for name in wanted if name in factors}


def locate_samples(
    tape: Tape, outputs: Tensor, count: int, model: nn.Module
) -> tuple[SampleAxis, Structure]:
    """How samples and positions share the first axis of the outputs, proved by probing.

    Args:
        tape: The recording.
        outputs: The differentiated outputs, [count, ...] or [count * T, ...] in either order.
        count: Leading size of the batch.
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
    if rows % count or rows == count:
        axes = [SampleAxis(0, rows)]
    else:
        axes = [SampleAxis(0, count), SampleAxis(0, count, minor=True)]
    first: InteractionError | None = None
    for axis in axes:
        try:
            return axis, prove_structure(tape, outputs, axis, model)
        except InteractionError as error:
            first = first or error
    assert first is not None
    raise first


def _prove(tape: Tape, outputs: Tensor, axis: SampleAxis) -> tuple[Structure, bool]:
    """The structure, and whether the first and the last sample reached every operation.

    Where a sample sent no gradient (a dead unit), the axis is the likely one, and the proof holds
    for this batch only.
    """
    probe = make_probe(outputs, axis)
    edges, places = _edges(tape)
    parameters = list(tape.parameters.values())
    grads = batched_grad([outputs], [*edges, *parameters], [probe.columns])
    arrived, expected = grads[: len(edges)], grads[len(edges) :]
    axes, usable, certain = [], [], True
    for call, outlets in zip(tape.calls, places, strict=True):
        found = []
        for place in outlets:
            grad = None if place is None else arrived[place]
            found.append(None if grad is None else find_axis(grad, axis.num_samples))
            if grad is not None and not bool(grad[1].any() and grad[2].any()):
                certain = False
            if grad is not None and found[-1] is None and call.tainted and overlap(grad):
                raise InteractionError(_interaction_message(call))
        live = [place for place in outlets if place is not None and arrived[place] is not None]
        axes.append(tuple(found))
        usable.append(bool(live) and sum(item is not None for item in found) == len(live))
    unused = tuple(
        name for name, grad in zip(tape.parameters, expected, strict=True) if grad is None
    )
    draft = Structure(tuple(axes), tuple(usable), (), unused)
    names = [name for name in tape.parameters if name not in unused]
    factors = _structured_factors(tape, outputs, draft, probe.columns, names)
    limit = tolerance([outputs, *parameters])
    norms = [float(grad.norm()) for grad in expected if grad is not None]
    floor = 1e-6 * max(norms, default=0.0)
    dense = []
    for name, grad in zip(tape.parameters, expected, strict=True):
        if name in unused:
            continue
        factor = factors.get(name)
        found_sum = None if factor is None else _sum_over_samples(factor)
        off = mismatch(grad, found_sum, floor)
        per_sample = factor is not None and _stays_on_sample(factor, axis.num_samples)
        if off > limit or not per_sample:
            dense.append(name)
    if dense:
        _log.info("No structured Jacobian for %s: computed as dense rows.", ", ".join(dense))
    return Structure(draft.axes, draft.usable, tuple(dense), unused), certain


def _sum_over_samples(factor: Factor) -> Tensor:
    """[K, *shape]: for each column, the sum of its rows over the samples."""
    n, k = factor.num_samples, factor.num_columns
    like = next(value for value in vars(factor).values() if isinstance(value, Tensor))
    eye = torch.eye(k, dtype=like.dtype, device=like.device)
    return factor.weighted_sum(eye.expand(n, k, k))


def _stays_on_sample(factor: Factor, num_samples: int) -> bool:
    """Whether the columns of the first (last) sample alone gave rows of that sample only."""
    if num_samples == 1:
        return True
    n, k = factor.num_samples, factor.num_columns
    like = next(value for value in vars(factor).values() if isinstance(value, Tensor))
    weights = torch.zeros(n, k, 2, dtype=like.dtype, device=like.device)
    weights[1:, 1, 0] = 1.0
    weights[:-1, 2, 1] = 1.0
    return not bool(factor.weighted_sum(weights).any())


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


def _structured_factors(
    tape: Tape, outputs: Tensor, structure: Structure, columns: Tensor, names: Sequence[str]
) -> dict[str, Factor]:
    if not names:
        return {}
    targets = {id(tape.parameters[name]): name for name in names}
    calls, edges = _needed(tape, structure, targets)
    if not calls:
        return {}
    collectors = []
    for index in calls:
        call = tape.calls[index]
        sources = frozenset(
            id(tensor)
            for tensor in [*tensors_in(call.args), *tensors_in(call.kwargs)]
            if id(tensor) in targets or id(tensor) in tape.derived
        )
        collectors.append(Collector(call, structure.axes[index], sources, columns.shape[0]))
    sweep(outputs, edges, columns, collectors)
    uses: dict[str, list[Factor]] = {name: [] for name in names}
    derived: dict[int, tuple[Tensor, list[Factor]]] = {}
    for collector in collectors:
        for tensor, factor in collector.finish():
            if id(tensor) in targets:
                uses[targets[id(tensor)]].append(factor)
            else:
                derived.setdefault(id(tensor), (tensor, []))[1].append(factor)
    for tensor, found in derived.values():
        for name, factor in _pull_back(tensor, add_uses(found), tape, names).items():
            uses[name].append(factor)
    return {name: add_uses(found) for name, found in uses.items() if found}


def _needed(
    tape: Tape, structure: Structure, targets: dict[int, str]
) -> tuple[list[int], list[list[GradientEdge]]]:
    """The calls that use a wanted parameter, and the gradient edges of each."""
    calls, edges = [], []
    for index, call in enumerate(tape.calls):
        if not structure.usable[index]:
            continue
        inputs = [*tensors_in(call.args), *tensors_in(call.kwargs)]
        if not any(id(t) in targets or id(t) in tape.derived for t in inputs):
            continue
        places = zip(call.outputs, structure.axes[index], strict=True)
        calls.append(index)
        edges.append([out.edge for out, axis in places if out is not None and axis is not None])
    return calls, edges


def _pull_back(
    derived: Tensor, factor: Factor, tape: Tape, names: Sequence[str]
) -> dict[str, Factor]:
    """Rows of the parameters from rows of a tensor that was computed from them alone."""
    n, d = factor.num_samples, factor.num_columns
    rows = factor.rows().reshape(n * d, *derived.shape)
    parameters = [tape.parameters[name] for name in names]
    grads = batched_grad([derived], parameters, [rows])
    return {
        name: Dense(grad.reshape(n, d, -1), parameter.shape)
        for name, parameter, grad in zip(names, parameters, grads, strict=True)
        if grad is not None
    }


def _graph_rows(
    tape: Tape, outputs: Tensor, axis: SampleAxis, columns: Tensor, names: Sequence[str]
) -> dict[str, Factor]:
    """Rows through the whole graph, one masked cotangent for each sample and column."""
    if not names:
        return {}
    parameters = [tape.parameters[name] for name in names]
    d, count = columns.shape[0], axis.num_samples
    step = max(1, _CHUNK_ENTRIES // max(1, columns.numel()))
    pieces: list[list[Tensor]] = [[] for _ in names]
    for start in range(0, count, step):
        stop = min(count, start + step)
        masked = columns.new_zeros(stop - start, *columns.shape)
        for sample in range(start, stop):
            place = axis.select(masked[sample - start], sample, leading=1)
            place.copy_(axis.select(columns, sample, leading=1))
        grads = batched_grad([outputs], parameters, [masked.flatten(0, 1)])
        for piece, parameter, grad in zip(pieces, parameters, grads, strict=True):
            if grad is None:
                grad = parameter.new_zeros((stop - start) * d, *parameter.shape)
            piece.append(grad.reshape(stop - start, d, -1))
    return {
        name: Dense(torch.cat(piece), parameter.shape)
        for name, parameter, piece in zip(names, parameters, pieces, strict=True)
    }


def _signature(tape: Tape, outputs: Tensor, axis: SampleAxis) -> object:
    """What the proof depends on: operations, their shapes and plain options, the parameters."""
    calls = tuple(
        (call.function, call.module, call.tainted, _options(call.args), _options(call.kwargs))
        for call in tape.calls
    )
    parameters = tuple((name, p.shape, p.dtype) for name, p in tape.parameters.items())
    return (calls, parameters, outputs.shape, outputs.dtype, outputs.device, axis)


def _options(value: object) -> object:
    if isinstance(value, Tensor):
        return (tuple(value.shape), value.dtype)
    if isinstance(value, dict):
        return tuple((name, _options(item)) for name, item in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(_options(item) for item in value)
    return value if isinstance(value, (int, float, str, bool, type(None))) else type(value)


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
        "receives gradients from the first and from the last sample in the same place. Exact "
        "per-sample factors exist only where each output depends on its own sample. Put the "
        "model into eval mode, or remove the operation after this layer that mixes samples "
        "(normalisation over the batch, contrastive similarities, batch statistics)."
    )
