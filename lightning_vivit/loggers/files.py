"""Files of arrays beside the logs: where, under which name, in which format."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities.cloud_io import get_filesystem
from lightning.pytorch import Trainer
from torch import Tensor

METADATA = "__metadata__"


def run_directory(trainer: Trainer) -> str:
    """Where this run's files go: the first logger's own directory, or the Trainer's root.

    Unlike `Trainer.log_dir` it does not communicate, so that one rank alone can ask.
    """
    for logger in trainer.loggers:
        if logger.log_dir:
            return logger.log_dir
        if logger.save_dir:  # shared by runs; ModelCheckpoint separates them in the same way
            version = logger.version
            version = version if isinstance(version, str) else f"version_{version}"
            return os.path.join(logger.save_dir, str(logger.name), version)
    return trainer.default_root_dir


def step_file(monitor: str, step: int, suffix: str) -> str:
    """``monitor/step_00000100.npz``; characters that a folder cannot have become ``_``."""
    folder = re.sub(r"[^\w.-]+", "_", monitor).strip(".") or "monitor"
    return os.path.join(folder, f"step_{step:08d}.{suffix}")


def to_numpy(tensor: Tensor) -> np.ndarray:
    """An array of the same values; bfloat16, which numpy lacks, becomes float32."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def npz(arrays: Mapping[str, Tensor | float], metadata: Mapping[str, Any]) -> bytes:
    """A compressed .npz file: one member for each key, and `METADATA`, a JSON text.

    Args:
        arrays: Key -> tensor, or number for a float64 array without dimensions.
        metadata: Plain values.
    """
    members: dict[str, Any] = {
        key: to_numpy(value) if isinstance(value, Tensor) else np.float64(value)
        for key, value in arrays.items()
    }
    members[METADATA] = np.array(json.dumps(metadata, default=str))
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **members)
    return buffer.getvalue()


def write_file(path: str, content: bytes) -> None:
    """Write a file, also to a remote address, and make its folders."""
    files = get_filesystem(path)
    files.makedirs(os.path.dirname(path), exist_ok=True)
    with files.open(path, "wb") as file:
        file.write(content)


def folder_bytes(path: str) -> int:
    """The size of everything below a folder, 0 if it is not there."""
    files = get_filesystem(path)
    return int(files.du(path)) if files.exists(path) else 0
