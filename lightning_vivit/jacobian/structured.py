"""Jacobian factors for any architecture, from the recorded operations and autograd.

One batched backward pass brings all columns to the outputs of the
recorded operations, a rule turns each operation's columns into factors, and what no rule knows,
or what the proof of the structure found to disagree with autograd, is computed as dense rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from lightning_vivit.factors import Dense, Factor, add_uses
from lightning_vivit.jacobian.collector import Collector
from lightning_vivit.jacobian.structure import Located, Structure
from lightning_vivit.jacobian.sweep import sweep
from lightning_vivit.jacobian.tail import shared_tail
from lightning_vivit.problem.tape.cotangents import batched_grad
from lightning_vivit.problem.tape.recorder import Call, Tape
from lightning_vivit.samples.axis import SampleAxis
from lightning_vivit.samples.batch import tensors_in

_CHUNK_ENTRIES = 1 << 24


def jacobian_factors(
    located: Located,
    columns: Tensor,
    names: Sequence[str] | None = None,
    gathers: bool = False,
) -> dict[str, Factor]:
    """Factors of all parameters for given columns.

    Args:
        located: The recorded forward pass with its proved structure.
        columns: [D, *outputs shape].
        names: Restrict the work to these parameters.
        gathers: Whether there is memory to gather columns, see `Collector`.

    Returns:
        Parameter name -> factor; parameters that do not influence the outputs are left out.
    """
    tape, outputs, axis = located.tape, located.outputs, located.axis
    structure = located.structure
    wanted = [name for name in (names or tape.parameters) if name not in structure.unused]
    dense = [name for name in wanted if name in structure.dense]
    structured = [name for name in wanted if name not in structure.dense]
    factors = structured_factors(tape, outputs, structure, columns, structured, gathers, axis)
    factors.update(_graph_rows(tape, outputs, axis, columns, dense))
    return {name: factors[name] for name in wanted if name in factors}


def structured_factors(
    tape: Tape,
    outputs: Tensor,
    structure: Structure,
    columns: Tensor,
    names: Sequence[str],
    gathers: bool = False,
    axis: SampleAxis | None = None,
) -> dict[str, Factor]:
    """Factors of the parameters that rules or single operations cover.

    Args:
        tape: The recording.
        outputs: The differentiated outputs, graph attached.
        structure: Where the samples are in each call.
        columns: [D, *outputs shape].
        names: Restrict the work to these parameters.
        gathers: Whether there is memory to gather columns, see `Collector`.
        axis: Where the samples are in the outputs, to share work that is the same for all of
            them; None to share nothing.

    Returns:
        Parameter name -> factor.
    """
    if not names:
        return {}
    targets = {id(tape.parameters[name]): name for name in names}
    calls, edges = _needed(tape, structure, targets)
    if not calls:
        return {}
    collectors = []
    for index in calls:
        ids = _sources(tape, tape.calls[index], targets)
        axes = structure.axes[index]
        collectors.append(Collector(tape.calls[index], axes, ids, columns.shape[0], gathers))
    tail = None
    if axis is not None:
        tail = shared_tail(tape, outputs, axis, structure.axes, columns)
    if tail is None:
        sweep(outputs, edges, columns, collectors)
    else:
        known = [tail.arrived.get(index) for index in calls]
        sweep(tail.inputs, edges, tail.columns, collectors, known)
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


def _sources(tape: Tape, call: Call, targets: Mapping[int, str]) -> frozenset[int]:
    """The ids of the tensors of a call for which factors are wanted."""
    inputs = [*tensors_in(call.args), *tensors_in(call.kwargs)]
    wanted = (id(t) for t in inputs if id(t) in targets or id(t) in tape.derived)
    return frozenset(wanted)


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
