"""What malloc keeps of freed memory, and when it gives it back."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")

FAULTS = """
import resource, torch
from lightning_vivit.machine.heap import reuse_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        held = [torch.empty(4 << 20, dtype=torch.uint8).fill_(1) for _ in range(10)]
        del held
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
first = faults()
reuse_freed_memory()
faults()
print(first, faults())
"""


def test_freed_memory_is_used_again() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True
    )
    before, after = map(int, done.stdout.split())
    if platform.libc_ver()[0] == "glibc":
        assert after <= before / 4, (before, after)  # none before where the heap was pinned
    assert after <= before + 100


RESIDENT = """
from pathlib import Path
import torch
from lightning_vivit.machine.heap import HeapLimit, reuse_freed_memory

def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024
"""
KEPT = """
reuse_freed_memory()
before = resident()
held = [torch.empty(16 << 20, dtype=torch.uint8).fill_(1) for _ in range(10)]
del held
print(resident() - before)
"""


@glibc
@pytest.mark.parametrize("told", [{}, {"MALLOC_TRIM_THRESHOLD_": "0"}])
def test_a_process_keeps_some_memory_unless_told_otherwise(told: dict[str, str]) -> None:
    plain = {name: value for name, value in os.environ.items() if "MALLOC" not in name.upper()}
    done = subprocess.run(
        [sys.executable, "-c", RESIDENT + KEPT],
        env={**plain, **told},
        capture_output=True,
        text=True,
        check=True,
    )
    left = float(done.stdout)  # MiB
    assert left <= 20 if told else left >= 150


LITTER = """
reuse_freed_memory()
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
    done = subprocess.run(
        [sys.executable, "-c", RESIDENT + LITTER], capture_output=True, text=True, check=True
    )
    (enough, held), (near, left), (again, _) = map(str.split, done.stdout.splitlines())
    assert (enough, near, again) == ("False", "True", "False")
    assert float(held) >= 95
    assert float(left) <= 10
