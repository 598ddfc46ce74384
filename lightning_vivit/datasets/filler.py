"""Computes the blocks of a kernel that are missing, and writes them."""

from __future__ import annotations

import logging

from tqdm.auto import tqdm

from lightning_vivit.datasets.block_rows import BlockRows, RowMaker
from lightning_vivit.datasets.chunks import ChunkReader
from lightning_vivit.datasets.store import FileStore, MemoryStore
from lightning_vivit.machine.heap import HeapLimit

_log = logging.getLogger("lightning_vivit.datasets")

Block = tuple[int, int]
Place = tuple[slice | int, ...]


class BlockFiller:
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
        held: dict[int, BlockRows] = {}
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

    def _fill_block(self, block: Block, left: BlockRows, right: BlockRows) -> None:
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
