"""Functions at the same time, each on one of the threads that torch computes with.

LAPACK's reduction of a symmetric matrix is bound by memory and gains nothing from a second thread
(19 ms for 640 rows in float32, 20 with one), but two reductions with one thread each take hardly
longer than one.

Threads of Python's own would have to share the cores with torch's: after a product these wait for
the next one in a loop, for milliseconds, which is as long as a spectrum takes. So the functions run
on torch's own threads, as the body of one parallel region of OpenMP. Within it torch and MKL take
one thread each, by OpenMP's rule for nested regions.
"""

from __future__ import annotations

import ctypes
import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import cache
from typing import Any, TypeVar

import torch

_T = TypeVar("_T")

_Region = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_PROCESS = os.getpid()  # threads do not survive a fork


def side_by_side(works: Sequence[Callable[[], _T]]) -> list[Future[_T]]:
    """Run functions at the same time, as many as torch has threads.

    In turn with one thread, in a forked process, and with an OpenMP that cannot start a region
    from outside (other than GNU's and LLVM's, so on Windows).

    Args:
        works: Functions that compute with torch on the CPU, the longest first. Each gets one
            thread; what torch keeps for each thread, such as `torch.no_grad`, holds on the
            caller's alone.

    Returns:
        Their results, all there: `Future.result` returns, or raises what the function raised.

    Raises:
        BaseException: What a function raised that is no error, such as KeyboardInterrupt.
    """
    futures: list[Future[_T]] = [Future() for _ in works]
    start, count = _region(), min(torch.get_num_threads(), len(works))
    if start is not None and count > 1 and os.getpid() == _PROCESS:
        waiting = deque(zip(works, futures, strict=True))

        def take(_: Any) -> None:
            while waiting:
                try:
                    work, future = waiting.popleft()
                except IndexError:  # another thread was faster
                    return
                _run(work, future)

        start(_Region(take), None, count, 0)
    for work, future in zip(works, futures, strict=True):
        if not future.done():  # all of them, or what an interruption left
            _run(work, future)
        raised = future.exception()
        if not isinstance(raised, (Exception, type(None))):
            raise raised
    return futures


def _run(work: Callable[[], _T], future: Future[_T]) -> None:
    try:
        found = work()
    except BaseException as error:  # nothing may leave a region of OpenMP
        future.set_exception(error)
    else:
        future.set_result(found)


@cache
def _region() -> Any:
    """Starts a region of the OpenMP that torch is linked with; None where it can't be called."""
    try:  # the library's own symbols, and those of what it was linked with
        start: Any = ctypes.CDLL(torch._C.__file__).GOMP_parallel
    except (AttributeError, OSError):
        return None
    # the body, its data, the number of threads, flags
    start.argtypes = [_Region, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    start.restype = None
    return start
