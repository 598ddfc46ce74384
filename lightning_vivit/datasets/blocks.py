"""The kernel between two data sets, from blocks of samples."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_vivit.datasets.block_rows import BlockRows, RowMaker
from lightning_vivit.datasets.chunks import ChunkReader, Select, Survey
from lightning_vivit.datasets.filler import BlockFiller
from lightning_vivit.datasets.store import FileStore, MemoryStore, read_header
from lightning_vivit.errors import OptionError, ProblemError
from lightning_vivit.factors.orders import CHUNK_ENTRIES
from lightning_vivit.kernel.modes import KernelEstimate, OutputKernel
from lightning_vivit.machine.heap import HeapLimit
from lightning_vivit.machine.memory import default_budget
from lightning_vivit.problem.groups import ParamGroups, resolve_groups
from lightning_vivit.problem.isolation.eval_mode import eval_mode
from lightning_vivit.problem.isolation.rng import isolated_rng
from lightning_vivit.problem.problem import Problem

_PROBE_SAMPLES = 4
_LARGEST_BLOCK = 256  # samples; larger ones were not faster
_SWEEP_COPIES = 2.5  # bytes of a backward sweep, in those of the factors that it leaves
_TILE_COPIES = 4  # of a block of the kernel while it is summed and written
_BLOCK_SIZE = "the block size"


def ntk_between(
    model: nn.Module,
    loader1: Iterable[Any],
    loader2: Iterable[Any] | None = None,
    *,
    mode: str = "trace",
    outputs: Sequence[int] | None = None,
    projections: int = 10,
    seed: int = 0,
    param_groups: ParamGroups = "all",
    select: Select | None = None,
    out: str | PathLike[str] | None = None,
    block_size: int | None = None,
    max_memory: int | None = None,
    progress: bool = True,
) -> Any:
    """Empirical neural tangent kernel between the samples of two data loaders.

    The samples are taken in blocks. Jacobian rows of as many blocks as fit into the memory budget
    are kept in factored form, and the other side passes by, so that each sample is evaluated
    once if everything fits. Of a symmetric kernel half the blocks are computed.

    With `out`, an interrupted call can be started again with the same arguments and computes only
    the blocks that are missing. `out` + ".journal" lists the blocks; keep it beside the file.

    Args:
        model: A module or LightningModule. It is evaluated in eval mode on the device of its
            parameters, and left as it was.
        loader1: Rows: a DataLoader without shuffling, or a list of batches. It is read once for
            its sizes and checksums, then once for each group of blocks that fits into memory.
        loader2: Columns; None for the symmetric kernel of `loader1`.
        mode: ``trace``, ``full``, ``diagonal``, ``pseudo`` or ``projected``, see `empirical_ntk`.
        outputs: Indices of the outputs that count; None for all.
        projections: Number of random directions of mode ``projected``.
        seed: Of the random directions.
        param_groups: As in `empirical_ntk`.
        select: Takes the model's inputs out of a batch: a tensor, a tuple (by position) or a dict
            (by name). None for batches that are a tensor or (inputs, targets).
        out: An .npy file for the result; None keeps it in memory.
        block_size: Samples of a block; None chooses it from the memory budget.
        max_memory: Bytes that may be used over the model's forward pass and a result in memory;
            None for half of what is free on the device.
        progress: Whether to show a progress bar.

    Returns:
        A CPU tensor, with `out` one on the mapped file: [N1, N2] (``trace``, ``pseudo``),
        [N1, N2, C] (``diagonal``) or [N1, N2, C, C] (``full``); a `KernelEstimate` of such tensors
        for ``projected``. A dict group -> kernel if there are several groups. In the file, groups
        are the first axis, then kernel and standard error of ``projected``.

    Raises:
        OptionError: An option has an impossible value, the loader shuffles, the batch needs
            `select`, or the file is of something else (weights, data, options).
        ProblemError: Unsupported outputs, data that change between passes, or too little memory.
        InteractionError: Samples influence each other.
    """
    wanted = OutputKernel.of(mode, outputs, projections, seed)
    if block_size is not None and block_size < 1:
        raise OptionError(f"Got block_size={block_size}. Supported: at least 1, or None.")
    path = None if out is None else _checked_path(out)
    with isolated_rng(), eval_mode(model):
        groups = resolve_groups(param_groups, Problem(model, None, None).trainable())
        budget = max_memory
        if budget is None:
            budget = default_budget(next(model.parameters()).device)
        heap = HeapLimit(budget)
        maker = RowMaker(model, wanted, groups, min(CHUNK_ENTRIES, max(1, budget // 64)))
        sample = maker.rows(ChunkReader(loader1, 1, select, "loader1").first(_PROBE_SAMPLES))
        if block_size is None and path is not None:
            block_size = (read_header(path) or {}).get(_BLOCK_SIZE)
        item = torch.empty(0, dtype=sample.dtype).element_size()
        temporary = 2 * item * maker.entries  # rows of both sides
        room = budget - temporary
        block_size, held = _block_sizes(sample, wanted, block_size, room)
        rows = ChunkReader(loader1, block_size, select, "loader1")
        columns = None
        if loader2 is not None and loader2 is not loader1:
            columns = ChunkReader(loader2, block_size, select, "loader2")
        sides = (rows.survey(), (columns or rows).survey())
        shape = _stored_shape(sides, sample, wanted, len(groups))
        dtype = torch.promote_types(sample.dtype, torch.float32)
        store: MemoryStore | FileStore
        if path is None:
            store = MemoryStore(shape, dtype)
            heap.allow(store.result().nbytes)
        else:
            contents = {
                "the model's weights, buffers or architecture": _fingerprint(model),
                "the options (mode, outputs, projections, seed)": repr(wanted),
                "the parameter groups": groups,
                _BLOCK_SIZE: block_size,
                "the data of loader1": [sides[0].sizes, sides[0].checksums],
                "the data of loader2": columns and [sides[1].sizes, sides[1].checksums],
            }
            store = FileStore(path, shape, dtype, contents)
        BlockFiller(maker, rows, columns, store, held, heap, 2 * temporary, progress).run()
    return _public(store.result(), list(groups), param_groups, wanted)


def _block_sizes(
    sample: BlockRows, wanted: OutputKernel, block_size: int | None, budget: int
) -> tuple[int, int]:
    """Samples of a block, and how many blocks of rows are held."""
    each = max(1, sample.nbytes // sample.num_samples)
    item = torch.empty(0, dtype=sample.dtype).element_size()
    axes = torch.Size(_kernel_axes(sample, wanted)).numel()
    if wanted.mode == "projected":
        axes = sample.num_columns

    def needed(size: int) -> int:
        sweep = int((1 + _SWEEP_COPIES) * each * size)
        return sweep + _TILE_COPIES * item * axes * size**2

    if block_size is None:
        block_size = _LARGEST_BLOCK
        while block_size > 1 and needed(block_size) > budget // 2:
            block_size //= 2
        if needed(block_size) > budget:
            raise ProblemError(
                f"One sample needs about {needed(1) / 2**20:.0f} MiB over the forward pass, and "
                f"the budget leaves {budget / 2**20:.0f} MiB for it. Use a larger max_memory, "
                "fewer outputs=, or mode='pseudo'."
            )
    room = budget - needed(block_size)
    return block_size, max(1, room // (each * block_size))


def _stored_shape(
    sides: tuple[Survey, Survey], sample: BlockRows, wanted: OutputKernel, groups: int
) -> tuple[int, ...]:
    """Of the whole result: groups if there are several, estimate and error, samples, outputs."""
    shape = (sides[0].num_samples, sides[1].num_samples, *_kernel_axes(sample, wanted))
    if wanted.mode == "projected":
        shape = (2, *shape)
    return (groups, *shape) if groups > 1 else shape


def _kernel_axes(sample: BlockRows, wanted: OutputKernel) -> tuple[int, ...]:
    """The axes of the kernel after the two of the samples."""
    return (sample.num_columns,) * {"full": 2, "diagonal": 1}.get(wanted.mode, 0)


def _checked_path(out: str | PathLike[str]) -> Path:
    path = Path(out)
    if path.suffix != ".npy":
        raise OptionError(f"Got out={str(out)!r}. Supported: the name of an .npy file.")
    return path


def _fingerprint(model: nn.Module) -> str:
    """Hash of structure, weights and buffers."""
    found = hashlib.sha256(re.sub(r"0x[0-9a-f]+", "", repr(model)).encode())
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        plain = tensor.detach().cpu().contiguous().flatten()
        if plain.numel():
            found.update(plain.view(torch.uint8).numpy().data)
    return found.hexdigest()


def _public(
    result: Tensor, names: list[str], param_groups: ParamGroups, wanted: OutputKernel
) -> Any:
    parts = list(result) if len(names) > 1 else [result]
    found = [KernelEstimate(*part) if wanted.mode == "projected" else part for part in parts]
    if isinstance(param_groups, str) and param_groups == "all":
        return found[0]
    return dict(zip(names, found, strict=True))
