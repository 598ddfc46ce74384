"""The heap of the process: what malloc keeps of freed memory, and when it gives it back."""

from __future__ import annotations

import ctypes
import os
import platform
from contextlib import suppress
from functools import cache
from pathlib import Path

HEAP_BLOCK = 32 << 20  # bytes; from there on glibc's malloc takes blocks from the system
_KEPT_HEAP = 512 << 20  # bytes at the top of its heap that it may keep
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_STATM = Path("/proc/self/statm")  # pages: all, resident, of which shared, ...


@cache
def reuse_freed_memory() -> None:
    """Let malloc give freed memory to the next tensor instead of back to the system.

    Fresh memory costs a page fault for each 4 KiB, which is more than most operations on it:
    measured 8% of the eigenpairs of 3c3d and of ResNet-20. The malloc of glibc is told to take
    blocks of up to 32 MiB from its heap and to keep up to 512 MiB of it (`mallopt`). Done once in
    a process; not where the environment says what malloc does, nor with another C library.
    """
    told = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")
    if any(name in os.environ for name in told) or not _has_glibc():
        return
    if "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return
    with suppress(OSError, AttributeError):  # a Python without the C library's symbols
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, HEAP_BLOCK)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_HEAP)


class HeapLimit:
    """Gives free pages back to the system before the process grows beyond a limit.

    The heap grows beyond what is in use: where something small lies in a freed block, the next
    tensor of its size takes fresh memory. On Linux with glibc; elsewhere nothing is done.
    """

    def __init__(self, growth: int) -> None:
        """Count from now on.

        Args:
            growth: Bytes by which the process may grow.
        """
        self._limit = _own_memory() + growth

    def allow(self, growth: int) -> None:
        """Let the process grow by so many bytes more."""
        self._limit += growth

    def trim(self, room: int) -> bool:
        """Give free pages back if there is too little room; some microseconds if there is enough.

        Args:
            room: Bytes that the process has to be able to grow by.

        Returns:
            Whether there was too little.
        """
        if _own_memory() + room <= self._limit or not _has_glibc():
            return False
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
        return True


@cache
def _has_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"


def _own_memory() -> int:
    """Bytes of the process in memory that are not of a mapped file; 0 where it is not told."""
    if not _STATM.exists():
        return 0
    resident, shared = map(int, _STATM.read_text().split()[1:3])
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")
