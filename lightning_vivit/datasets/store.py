"""Where a large kernel is kept: in memory, or in an .npy file beside a journal of its blocks."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_vivit.errors import OptionError

JOURNAL = ".journal"
_FLUSH_SECONDS = 2.0  # between two flushes: the work that a power cut can cost


class MemoryStore:
    """A kernel in memory."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        """Allocate it.

        Args:
            shape: Of the whole kernel.
            dtype: Of its entries.
        """
        self._values = torch.empty(shape, dtype=dtype)
        self.done: set[tuple[int, int]] = set()

    def write(self, place: tuple[slice | int, ...], values: Tensor) -> None:
        """Put values at a place."""
        self._values[place] = values.to("cpu")

    def commit(self, block: tuple[int, int]) -> None:
        """Note that a block is complete."""
        self.done.add(block)

    def flush(self) -> None:
        """Nothing has to be done."""

    def result(self) -> Tensor:
        """The kernel."""
        return self._values


class FileStore:
    """A kernel in an .npy file. The file ``<path>.journal`` says of what, and which blocks it has.

    Blocks are flushed to the file before they are noted, so a noted block is complete whatever
    interrupts the work. That is done every few seconds and at the end, also after an exception.

    Attributes:
        done: The blocks that the file has.
    """

    def __init__(
        self, path: Path, shape: tuple[int, ...], dtype: torch.dtype, contents: Mapping[str, Any]
    ) -> None:
        """Create the file, or go on with it.

        Args:
            path: Of the .npy file.
            shape: Of the whole kernel.
            dtype: Of its entries, one that numpy has.
            contents: What the kernel is of, plain values; must be the same when going on.

        Raises:
            OptionError: The file is there without a journal, or of something else.
        """
        self._path = path
        self._journal = journal_of(path)
        self.done: set[tuple[int, int]] = set()
        self._pending: list[tuple[int, int]] = []
        self._flushed = time.monotonic()
        header = json.loads(json.dumps({**contents, "shape": shape, "dtype": str(dtype)}))
        known = read_header(path)
        if known is not None and path.exists():
            changed = [key for key in header if header[key] != known.get(key)]
            if changed:
                raise OptionError(
                    f"{path} was begun with something else: {', '.join(changed)} changed since. "
                    f"Delete {path} and {self._journal}, or choose another file."
                )
            self._file = np.load(path, mmap_mode="r+")
            self.done = _blocks(self._journal)
            return
        if path.exists():
            raise OptionError(
                f"{path} exists and has no journal beside it, so it is not known to be a kernel "
                "to go on with. Delete it, or choose another file."
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        self._append(json.dumps(header), mode="w")
        part = path.with_name(path.name + ".part")  # renamed once its header is complete
        np.lib.format.open_memmap(part, mode="w+", dtype=_numpy_dtype(dtype), shape=shape).flush()
        part.replace(path)
        self._file = np.load(path, mmap_mode="r+")

    def write(self, place: tuple[slice | int, ...], values: Tensor) -> None:
        """Put values at a place."""
        self._file[place] = values.cpu().numpy()

    def commit(self, block: tuple[int, int]) -> None:
        """Note that a block is complete."""
        self._pending.append(block)
        self.done.add(block)
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Bring all complete blocks to the disk, then their names."""
        if self._pending:
            self._file.flush()
            self._append("\n".join(f"{row} {column}" for row, column in self._pending))
            self._pending = []
        self._flushed = time.monotonic()

    def result(self) -> Tensor:
        """The kernel as a tensor on the mapped file; writing to it does not change the file."""
        return torch.from_numpy(np.load(self._path, mmap_mode="c"))

    def _append(self, line: str, mode: str = "a") -> None:
        with self._journal.open(mode) as journal:
            journal.write(f"{line}\n")
            journal.flush()
            os.fsync(journal.fileno())


def journal_of(path: Path) -> Path:
    """The journal beside an .npy file."""
    return path.with_name(path.name + JOURNAL)


def read_header(path: Path) -> dict[str, Any] | None:
    """What a kernel file was begun with; None without a readable journal."""
    journal = journal_of(path)
    if not journal.exists():
        return None
    try:
        found = json.loads(journal.read_text().partition("\n")[0])
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _blocks(journal: Path) -> set[tuple[int, int]]:
    """The noted blocks; a line that was cut off by an interruption does not count."""
    text = journal.read_text()
    if not text.endswith("\n"):
        text = text[: text.rfind("\n") + 1]
        journal.write_text(text)
    found = (line.split() for line in text.splitlines()[1:])
    return {(int(row), int(column)) for row, column in found}


def _numpy_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    return torch.empty(0, dtype=dtype).numpy().dtype
