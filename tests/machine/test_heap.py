"""When free pages of the heap are given back."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")

RESIDENT = """
from pathlib import Path
import torch
from lightning_vivit.machine.heap import HeapLimit

def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024
"""
LITTER = """
before = resident()
limits = [HeapLimit(200 << 20), HeapLimit(50 << 20)]
blocks = [torch.empty(1 << 20, dtype=torch.uint8).fill_(1) for _ in range(100)]
last = torch.empty(1 << 10, dtype=torch.uint8).fill_(1)  # nothing above it is free
del blocks
for limit, room in ((0, 0), (0, 150 << 20), (1, 0)):
    limits[limit].allow(4 << 20)
    print(limits[limit].trim(room), resident() - before)
"""


@glibc
def test_free_pages_are_given_back_where_the_limit_is_near() -> None:
    kept = {"MALLOC_MMAP_THRESHOLD_": f"{32 << 20}", "MALLOC_TRIM_THRESHOLD_": f"{512 << 20}"}
    command = [sys.executable, "-c", RESIDENT + LITTER]
    done = subprocess.run(
        command, env={**os.environ, **kept}, capture_output=True, text=True, check=True
    )
    (enough, held), (near, left), (again, _) = map(str.split, done.stdout.splitlines())
    assert (enough, near, again) == ("False", "True", "False")
    assert float(held) >= 95
    assert float(left) <= 10
