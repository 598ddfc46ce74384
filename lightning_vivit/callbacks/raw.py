"""Raw results of a monitor for the user's own code: a callable, a short history, files.

Files of the option `dump`, one for each monitored step:

    <directory of the run>/raw/<monitor>/step_00000100.npz (or .safetensors)

The directory of the run is the first logger's `log_dir`; for a logger without one
save_dir/name/version, as ModelCheckpoint has it; without a logger the Trainer's
`default_root_dir`. `<monitor>` is prefix and section, with ``_`` for what a folder cannot be
called. Names inside are the keys of the entry: scalars as float64 arrays without dimensions, raw
arrays as they are. The metadata (in .npz a JSON text under ``__metadata__``, in .safetensors the
file's own metadata, each value a JSON text) are ``monitor``, ``kind`` (the class), ``step``,
``epoch``, ``version`` (of this package) and ``options``.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_vivit.errors import OptionError, ViViTError, require_integer
from lightning_vivit.loggers.entry import LogEntry
from lightning_vivit.loggers.files import npz, run_directory, step_file, write_file
from lightning_vivit.version import __version__

FOLDER = "raw"
MAX_HISTORY_BYTES = 64 * 2**20
Dump: TypeAlias = Literal["npz", "safetensors"]


@dataclass(frozen=True)
class MonitorResult:
    """What a monitor found at one step.

    Attributes:
        monitor: Prefix and section, the first part of the keys.
        step: On the x axis of the loggers.
        epoch: The Trainer's current epoch.
        scalars: Key -> number, as in the loggers.
        arrays: Key -> tensor on the CPU that shares memory with nothing of the run.
    """

    monitor: str
    step: int
    epoch: int
    scalars: dict[str, float]
    arrays: dict[str, Tensor]

    @property
    def nbytes(self) -> int:
        """Memory of the arrays."""
        return sum(array.nbytes for array in self.arrays.values())


class RawResults:
    """Hands the results of one monitor on.

    Args:
        on_result: Called with each result, on every rank with its own.
        history: How many results to keep; 0 for none. They have at most `MAX_HISTORY_BYTES`
            together: older ones go first, and arrays that exceed it alone are not kept.
        dump: Format of one file per step, written by rank 0; None for no files.

    Raises:
        OptionError: If an option has an impossible value, or safetensors is not installed.
    """

    def __init__(
        self,
        on_result: Callable[[MonitorResult], Any] | None = None,
        history: int = 4,
        dump: Dump | None = None,
    ) -> None:
        if on_result is not None and not callable(on_result):
            raise OptionError(f"on_result has to be a callable of the result, got {on_result!r}.")
        require_integer("history", history, lowest=0)
        if dump not in (None, "npz", "safetensors"):
            raise OptionError(f"dump has to be None, 'npz' or 'safetensors', got {dump!r}.")
        if dump == "safetensors" and importlib.util.find_spec("safetensors") is None:
            raise OptionError(
                "dump='safetensors' needs the package safetensors, which is not installed. "
                "Run `pip install safetensors`, or use dump='npz'."
            )
        self.on_result = on_result
        self.dump = dump
        self._kept: deque[MonitorResult] = deque(maxlen=history)
        self._warned = False

    @property
    def results(self) -> tuple[MonitorResult, ...]:
        """The last results, the newest at the end."""
        return tuple(self._kept)

    def clear(self) -> None:
        """Forget the results; a new run starts."""
        self._kept.clear()
        self._warned = False

    def take(
        self, trainer: Trainer, entry: LogEntry, kind: str, options: Mapping[str, Any]
    ) -> None:
        """Keep an entry, hand it to `on_result`, write its file.

        Args:
            trainer: The Trainer that runs.
            entry: What the monitor found.
            kind: Class name of the monitor.
            options: Its options, for the file's metadata.

        Raises:
            ViViTError: What `on_result` raised, or what the writing of the file raised.
        """
        if not self._kept.maxlen and self.on_result is None and self.dump is None:
            return
        arrays = {key: _detached(value) for key, value in entry.arrays.items()}
        epoch = trainer.current_epoch
        result = MonitorResult(entry.monitor, entry.step, epoch, dict(entry.scalars), arrays)
        self._keep(result)
        if self.on_result is not None:
            try:
                self.on_result(result)
            except Exception as error:
                name = getattr(self.on_result, "__qualname__", type(self.on_result).__qualname__)
                raise ViViTError(
                    f"on_result={name} raised {type(error).__name__}: {error}"
                ) from error
        if self.dump is not None and trainer.is_global_zero:
            metadata = {"monitor": entry.monitor, "kind": kind, "step": entry.step}
            metadata |= {"epoch": epoch, "version": __version__, "options": dict(options)}
            name = step_file(entry.monitor, entry.step, self.dump)
            path = os.path.join(run_directory(trainer), FOLDER, name)
            write_file(path, _file(self.dump, result, metadata))

    def _keep(self, result: MonitorResult) -> None:
        if not self._kept.maxlen:
            return
        if result.nbytes > MAX_HISTORY_BYTES:
            if not self._warned:
                rank_zero_warn(
                    f"The arrays of {result.monitor!r} have {result.nbytes >> 20} MiB, more than "
                    f"the {MAX_HISTORY_BYTES >> 20} MiB of a monitor's history: `results` has "
                    "the scalars only. Use on_result or dump to get the arrays.",
                    category=UserWarning,
                )
                self._warned = True
            result = replace(result, arrays={})
        self._kept.append(result)
        while sum(kept.nbytes for kept in self._kept) > MAX_HISTORY_BYTES:
            self._kept.popleft()


def _detached(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach())


def _file(dump: Dump, result: MonitorResult, metadata: dict[str, Any]) -> bytes:
    if dump == "npz":
        return npz({**result.scalars, **result.arrays}, metadata)
    from safetensors.torch import save

    scalars = {
        key: torch.tensor(value, dtype=torch.float64) for key, value in result.scalars.items()
    }
    texts = {key: json.dumps(value, default=str) for key, value in metadata.items()}
    content: bytes = save({**scalars, **result.arrays}, metadata=texts)
    return content
