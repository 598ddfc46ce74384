"""The process stays inside the budget where freed memory lies in pieces."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import ctypes
import torch
from datasets.test_all_digits import AnonymousMemory
from lightning_vivit import ntk_between
from lightning_vivit.datasets.block_rows import RowMaker

libc = ctypes.CDLL(None)
libc.malloc.restype = libc.realloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.realloc.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
plain, littered = RowMaker.multiply, 0

def littering(*args):
    global littered
    size = (1 << 20) + littered * (1 << 14)  # larger than the holes of before
    pieces = [libc.malloc(size) for _ in range(15)]
    for piece in pieces:
        ctypes.memset(piece, 1, size)
    for piece in pieces:
        libc.realloc(piece, 1 << 10)  # its beginning stays, and a hole behind it
    littered += 1
    return plain(*args)

model = torch.nn.Linear(10, 3)
batches = [torch.randn(8, 10) for _ in range(8)]
ntk_between(model, batches, progress=False)  # what a first call loads
RowMaker.multiply = littering
with AnonymousMemory() as memory:
    found = ntk_between(model, batches, block_size=8, max_memory=150 << 20, progress=False)
assert found.shape == (64, 64)
print(memory.grown, littered)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_memory_in_pieces_is_given_back() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    grown, littered = map(float, done.stdout.split())
    assert littered == 36
    assert grown < 150
