"""The kernel between two data sets, from blocks of samples."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from lightning_vivit.datasets.chunks import ChunkReader, Select
from lightning_vivit.datasets.factors import RowMaker, Rows
from lightning_vivit.datasets.store import FileStore, MemoryStore, read_header
from lightning_vivit.errors import OptionError, ProblemError
from lightning_vivit.factors.orders import CHUNK_ENTRIES
from lightning_vivit.kernel.modes import KernelEstimate, OutputKernel
from lightning_vivit.machine.heap import HeapLimit
from lightning_vivit.machine.memory import default_budget
from lightning_vivit.problem.groups import ParamGroups, resolve_groups
from lightning_vivit.problem.isolation.modes import eval_mode
from lightning_vivit.problem.isolation.rng import isolated_rng
from lightning_vivit.problem.problem import Problem

_log = logging.getLogger(__name__)
_PROBE_SAMPLES = 4
_LARGEST_BLOCK = 256  # samples; larger ones were not faster
_SWEEP_COPIES = 2.5  # bytes of a backward sweep, in those of the factors that it leaves
_TILE_COPIES = 4  # of a block of the kernel while it is summed and written
_BLOCK_SIZE = "the block size"

Block = tuple[int, int]
Place = tuple[slice | int, ...]


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
        counts = (sides[0].num_samples, sides[1].num_samples)
        shape = (*counts, *_kernel_axes(sample, wanted))
        if wanted.mode == "projected":
            shape = (2, *shape)
        if len(groups) > 1:
            shape = (len(groups), *shape)
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
        _Filler(maker, rows, columns, store, held, heap, 2 * temporary, progress).run()
    return _public(store.result(), list(groups), param_groups, wanted)


class _Filler:
    """Computes the missing blocks and writes them."""

    def __init__(
        self,
        maker: RowMaker,
        rows: ChunkReader,
        columns: ChunkReader | None,
        store: MemoryStore | FileStore,
        held: int,
        heap: HeapLimit,
        room: int,
        progress: bool,
    ) -> None:
        self._maker = maker
        self._rows = rows
        self._columns = columns  # None: symmetric
        self._store = store
        self._held = held
        self._heap = heap
        self._room = room  # of a block that finds the memory of its rows in pieces
        self._first = rows.survey()
        self._second = (columns or rows).survey()
        self._first_starts, self._second_starts = self._first.starts, self._second.starts
        pairs = {
            (i, j)
            for i in range(len(self._first.sizes))
            for j in range(len(self._second.sizes))
            if columns is not None or i <= j
        }
        self._missing = pairs - store.done
        self._bar = tqdm(
            total=len(pairs),
            initial=len(pairs) - len(self._missing),
            desc="NTK",
            unit="block",
            disable=not progress,
        )
        _log.info("Computing %d of %d blocks of the kernel.", len(self._missing), len(pairs))

    def run(self) -> None:
        """Fill, one group of row blocks after the other."""
        with self._bar:
            try:
                count = len(self._first.sizes)
                for start in range(0, count, self._held):
                    stripe = range(start, min(count, start + self._held))
                    if any(i in stripe for i, _ in self._missing):
                        self._fill_rows(stripe)
            finally:
                self._store.flush()

    def _fill_rows(self, stripe: range) -> None:
        held: dict[int, Rows] = {}
        if self._columns is not None:
            wanted = {i for i, _ in self._missing if i in stripe}
            for i, inputs in self._rows.read():
                if i in wanted:
                    held[i] = self._maker.rows(inputs)
                if len(held) == len(wanted):
                    break
        last = max(j for i, j in self._missing if i in stripe)
        for j, inputs in (self._columns or self._rows).read():
            partners = [i for i in stripe if (i, j) in self._missing]
            later = any((j, k) in self._missing for k in range(j + 1, last + 1))
            keep = self._columns is None and j in stripe and later
            if partners or keep:
                right = self._maker.rows(inputs)
                if keep:
                    held[j] = right
                for i in partners:
                    same = self._columns is None and i == j
                    self._fill_block((i, j), right if same else held[i], right)
            if j >= last:
                break

    def _fill_block(self, block: Block, left: Rows, right: Rows) -> None:
        i, j = block
        rows = slice(self._first_starts[i], self._first_starts[i] + left.num_samples)
        columns = slice(self._second_starts[j], self._second_starts[j] + right.num_samples)
        found = self._maker.multiply(left, right)
        before: Place = ()
        if self._maker.wanted.mode == "projected":
            before = (slice(None),)
        for index, kernel in enumerate(found.values()):
            place: Place = (index, *before) if len(found) > 1 else before
            self._store.write((*place, rows, columns), kernel)
            if self._columns is None and i != j:
                self._store.write((*place, columns, rows), self._maker.mirrored(kernel))
        self._store.commit(block)
        self._missing.discard(block)
        self._heap.trim(self._room)
        self._bar.update()


def _block_sizes(
    sample: Rows, wanted: OutputKernel, block_size: int | None, budget: int
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


def _kernel_axes(sample: Rows, wanted: OutputKernel) -> tuple[int, ...]:
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
