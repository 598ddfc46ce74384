"""Exact numerics while something is evaluated: no autocast, no TF32, no compiled code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_vivit.problem.isolation.rng import isolated_rng


@contextmanager
def quiet_numerics() -> Iterator[None]:
    """Gradients on, autocast, inference mode and TF32 off, compiled code eager, RNG put back."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    tf32 = matmul.allow_tf32, cudnn.allow_tf32
    with ExitStack() as stack:
        stack.enter_context(isolated_rng())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device in ("cpu", "cuda"):
            if device == "cpu" or _has_cuda():
                stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(eager_code())
        try:
            matmul.allow_tf32 = cudnn.allow_tf32 = False
            yield
        finally:
            matmul.allow_tf32, cudnn.allow_tf32 = tf32


@cache
def _has_cuda() -> bool:
    return torch.cuda.is_available()


@contextmanager
def eager_code() -> Iterator[None]:
    """Run compiled modules eagerly, so that their operations are seen."""
    if torch.compiler.is_compiling():
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Make a dtype that of new tensors."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
