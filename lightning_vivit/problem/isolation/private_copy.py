"""Leave no trace in the run: data sets read through a copy, and `eval_mode`."""

from __future__ import annotations

import io
import pickle
import types
from typing import Any, TypeVar

import numpy as np
import torch

from lightning_vivit.problem.isolation.eval_mode import eval_mode

__all__ = ["eval_mode", "private_copy"]

T = TypeVar("T")

# Shared by a private copy: data, and code (a local class or a lambda cannot be pickled).
SHARED = (
    torch.Tensor,
    np.ndarray,
    type,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.ModuleType,
)


def private_copy(value: T) -> T:
    """A copy that shares tensors, arrays, classes and functions and owns everything else.

    Reading a data set can change it (its own random generator, a counter, a cache). The copy takes
    those changes, the big blocks of data are not duplicated.

    Raises:
        Exception: Whatever the pickling of an object without support for it raises.
    """
    shared: list[Any] = []

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> int | None:
            if isinstance(obj, SHARED):
                shared.append(obj)
                return len(shared) - 1
            return None

    class Unpickler(pickle.Unpickler):
        def persistent_load(self, pid: Any) -> Any:
            return shared[pid]

    buffer = io.BytesIO()
    Pickler(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(value)
    buffer.seek(0)
    copied: T = Unpickler(buffer).load()
    return copied
