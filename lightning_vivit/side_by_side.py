"""Functions at the same time, each with its share of torch's threads.

LAPACK's reduction of a symmetric matrix is bound by memory and gains nothing from a second thread
(19 ms for 640 rows in float32, 20 with one), but two reductions with one thread each take hardly
longer than one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cache
from threading import Barrier
from typing import TypeVar

import torch
from threadpoolctl import ThreadpoolController

_T = TypeVar("_T")


def side_by_side(works: Sequence[Callable[[], _T]]) -> list[Future[_T]]:
    """Run functions at the same time, as many as there are threads; with one thread, in turn.

    Args:
        works: Functions that compute with torch on the CPU, the longest first. They run on other
            threads than the caller's, whose own number of threads is left alone.

    Returns:
        Their results, all there: `Future.result` returns, or raises what the function raised.
    """
    threads = torch.get_num_threads()
    count = min(threads, len(works))
    if count < 2:
        return [_done(work) for work in works]
    helpers = _helpers(count, threads // count)
    futures = [helpers.submit(work) for work in works]
    wait(futures)  # what the caller computed meanwhile would slow all of them down
    return futures


def _done(work: Callable[[], _T]) -> Future[_T]:
    found: Future[_T] = Future()
    try:
        found.set_result(work())
    except Exception as error:
        found.set_exception(error)
    return found


@cache
def _helpers(count: int, share: int) -> ThreadPoolExecutor:
    """Threads that are all ready: a fork while one starts up could copy a lock that it holds."""
    name = "lightning_vivit"
    pool = ThreadPoolExecutor(count, name, initializer=_hold, initargs=(share,))
    meeting = Barrier(count, timeout=60)
    wait([pool.submit(meeting.wait) for _ in range(count)])
    return pool


def _hold(threads: int) -> None:
    """Limit the calling thread, and it alone, which torch.set_num_threads cannot do.

    OpenMP keeps its number of threads for each thread that calls it.
    """
    torch.get_num_threads()  # takes over torch's number, which it would do later otherwise
    ThreadpoolController().limit(limits=threads, user_api="openmp")


if hasattr(os, "register_at_fork"):  # threads do not survive in the child
    os.register_at_fork(after_in_child=_helpers.cache_clear)
