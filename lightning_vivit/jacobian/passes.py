"""Backward sweeps that stay inside a memory budget: which parameters and columns each takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from lightning_vivit.errors import ProblemError
from lightning_vivit.jacobian.collector import gathered_columns
from lightning_vivit.jacobian.structure import Located, Structure
from lightning_vivit.problem.tape.recorder import Call, Tape
from lightning_vivit.samples.batch import tensors_in

_COPIES = 2.5  # columns, a reordered copy of one layer's, and its gradients


@dataclass(frozen=True)
class Pass:
    """One backward sweep: the parameters and the blocks of columns it takes.

    Attributes:
        names: Parameters whose factors are formed.
        blocks: Number of column blocks; with more than one, pairs of blocks are formed in turn.
        size: Predicted bytes.
        gathers: Whether there is memory to gather columns before rows are formed.
    """

    names: tuple[str, ...]
    blocks: int
    size: int
    gathers: bool = False


def plan_passes(
    located: Located,
    names: Sequence[str],
    num_samples: int,
    num_columns: int,
    fixed: int,
    budget: int,
) -> list[Pass]:
    """Cut the work into backward sweeps that stay inside a budget.

    Args:
        located: The forward pass.
        names: All parameters that are wanted.
        num_samples: N.
        num_columns: D.
        fixed: Bytes that are needed throughout (the kernels).
        budget: Bytes that may be used over the forward pass.

    Returns:
        The passes; their parameters are disjoint.

    Raises:
        ProblemError: Even one column at a time does not fit; the message says what would.
    """
    room, itemsize = budget - fixed, located.outputs.element_size()
    bundles = _bundles(located.tape, located.structure, names, num_samples, num_columns)
    sizes = {
        bundle: (int(_COPIES * itemsize * num_columns * columns), itemsize * patches)
        for bundle, (columns, patches, _) in bundles.items()
    }
    whole = sum(columns + patches for columns, patches in sizes.values())
    whole += itemsize * sum(gathered for _, _, gathered in bundles.values())
    if sizes and whole <= room:
        every = tuple(name for bundle in sizes for name in bundle)
        return [Pass(every, 1, whole, gathers=True)]
    needs = [2 * columns // num_columns + patches for columns, patches in sizes.values()]
    smallest = max(needs, default=0)
    if room < smallest:
        raise ProblemError(_too_small(budget, fixed, smallest, num_samples, num_columns))
    passes: list[Pass] = []
    together: list[str] = []
    filled = 0
    for bundle, (columns, patches) in sizes.items():
        size = columns + patches
        if size > room:
            free = max(1, room - patches)
            blocks = min(num_columns, -(-2 * columns // free))
            passes.append(Pass(bundle, blocks, 2 * columns // blocks + patches))
            continue
        if filled + size > room:
            passes.append(Pass(tuple(together), 1, filled))
            together, filled = [], 0
        together += bundle
        filled += size
    if together:
        passes.append(Pass(tuple(together), 1, filled))
    return passes


def _bundles(
    tape: Tape, structure: Structure, names: Sequence[str], num_samples: int, num_columns: int
) -> Mapping[tuple[str, ...], tuple[int, int, int]]:
    """Parameters that must be formed together, with entries: of a column, patches, gathered."""
    owner = {name: name for name in names}

    def root(name: str) -> str:
        while owner[name] != name:
            name = owner[name]
        return name

    known = {id(tape.parameters[name]): name for name in names}
    used = {id(tensor) for call in tape.calls for tensor in tensors_in([call.args, call.kwargs])}
    # of which no operation uses the parameter itself (a parametrized weight's original)
    derived = [name for name in names if id(tape.parameters[name]) not in used]
    entries: dict[str, int] = dict.fromkeys(names, 0)
    patches: dict[str, int] = dict.fromkeys(names, 0)
    gathered: dict[str, int] = dict.fromkeys(names, 0)
    for call, usable in zip(tape.calls, structure.usable, strict=True):
        inputs = [*tensors_in(call.args), *tensors_in(call.kwargs)]
        users = [known[id(tensor)] for tensor in inputs if id(tensor) in known]
        if any(id(tensor) in tape.derived for tensor in inputs):
            users += derived
        if not usable or not users:
            continue
        first = root(users[0])
        for name in users[1:]:
            owner[root(name)] = first
        of_columns, of_inputs = _patch_entries(call)
        columns = sum(output.shape.numel() for output in call.outputs if output is not None)
        columns += of_columns
        rows = num_samples * sum(tape.parameters[name].numel() for name in users)
        entries[first] += min(columns, rows)  # the smaller of the two is kept
        patches[first] += of_inputs
        weights = [tape.parameters[name].shape for name in users]
        sizes = [(max(1, min(shape[:2])), shape.numel()) for shape in weights if len(shape) > 1]
        if rows < columns and sizes:
            few, wide = min(a for a, _ in sizes), max(p // a for a, p in sizes)
            gathered[first] += columns * gathered_columns(num_columns, few, wide, columns)
    for name in structure.dense:
        if name in entries:
            entries[name] += num_samples * tape.parameters[name].numel()
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(root(name), []).append(name)
    return {
        tuple(members): (
            sum(entries[name] for name in members),
            sum(patches[name] for name in members),
            sum(gathered[name] for name in members),
        )
        for members in found.values()
    }


def _patch_entries(call: Call) -> tuple[int, int]:
    """Entries of the patches that a convolution's rule makes: of each column, and of the inputs."""
    output = call.outputs[0]
    values = [*call.args, *call.kwargs.values()]
    tensors = [value for value in values if isinstance(value, Tensor)]
    if output is None or not call.name.startswith("conv") or len(tensors) < 2:
        return 0, 0
    inputs, weight = tensors[:2]
    taps = weight.shape[2:].numel()
    if "transpose" in call.name:  # patches of the columns, at the positions of the input
        return inputs.shape.numel() // inputs.shape[1] * output.shape[1] * taps, 0
    return 0, output.shape.numel() // output.shape[1] * inputs.shape[1] * taps


def _too_small(budget: int, fixed: int, smallest: int, samples: int, columns: int) -> str:
    return (
        f"The evaluation of {samples} samples with {columns} columns each needs about "
        f"{_mib(fixed + smallest)} over the forward pass ({_mib(fixed)} of it for the kernel), and "
        f"the budget is {_mib(budget)}. Use fewer samples (max_samples), Monte-Carlo columns "
        "(mc_samples=1), fewer outputs, or a larger max_memory."
    )


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"
