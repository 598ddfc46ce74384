"""CSV files: scalars, and bounded files of arrays beside them."""

from __future__ import annotations

import os

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from lightning_vivit.loggers.entry import LogEntry
from lightning_vivit.loggers.files import folder_bytes, npz, step_file, write_file
from lightning_vivit.loggers.writer import LogWriter

FOLDER = "arrays"
MAX_FILE_BYTES = 4 * 2**20  # of one monitor and step, before compression
MAX_FOLDER_BYTES = 64 * 2**20  # of one run


class CSVWriter(LogWriter):
    """Adds ``arrays/<monitor>/step_<step>.npz`` beside metrics.csv.

    A file holds the entry's histograms (their samples) and raw arrays under their full keys, and
    under ``__metadata__`` a JSON text with the step, the names of the histograms and what was left
    out. Of one monitor and step at most 4 MiB are kept, smallest arrays first; once the folder has
    64 MiB nothing more is written to it. The monitors' option `dump` writes everything.
    """

    kind = "CSVLogger"
    logger: CSVLogger
    shows = ("histograms",)

    def write(self, entry: LogEntry) -> None:
        """Write scalars, and the arrays that fit."""
        super().write(entry)
        if entry.histograms or entry.arrays:
            self._write_arrays(entry)

    def _write_arrays(self, entry: LogEntry) -> None:
        folder = os.path.join(self.logger.log_dir, FOLDER)
        used = folder_bytes(folder)
        if used >= MAX_FOLDER_BYTES:
            return
        kept: dict[str, Tensor] = {}
        size = 0
        both = {**entry.arrays, **entry.histograms}
        for key in sorted(both, key=lambda key: both[key].nbytes):
            size += both[key].nbytes
            if size <= MAX_FILE_BYTES:
                kept[key] = both[key]
        content = npz(
            kept,
            {
                "step": entry.step,
                "histograms": [key for key in entry.histograms if key in kept],
                "left_out": sorted(set(both) - set(kept)),
            },
        )
        write_file(os.path.join(folder, step_file(entry.monitor, entry.step, "npz")), content)
        if used + len(content) >= MAX_FOLDER_BYTES:
            rank_zero_info(
                f"{folder} has reached its limit of {MAX_FOLDER_BYTES >> 20} MiB: later steps "
                "write scalars only. Use the monitors' option dump='npz' for every step."
            )
