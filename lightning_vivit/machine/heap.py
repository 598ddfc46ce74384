"""The heap of the process: free pages in it, and when they are given back."""

from __future__ import annotations

import ctypes
import os
import platform
from contextlib import suppress
from functools import cache
from pathlib import Path

_STATM = Path("/proc/self/statm")  # pages: all, resident, of which shared, ...


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
