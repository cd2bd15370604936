"""Work on rows, a share a core: cores wait for each other once a call instead of once an operation."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch

__all__ = ["on_every_core"]

_LEAST_SHARE = 32  # rows; smaller shares of a call are not worth another core


def on_every_core(work: Callable[[int, int], None], count: int) -> None:
    """Share rows among as many cores as PyTorch would use.

    Args:
        work: Called with the first row of a share and the row behind its last one, in inference mode.
        count: Number of rows. Few of them stay in the caller's thread, where an operation may use several cores.
    """
    cores = min(torch.get_num_threads(), count // _LEAST_SHARE)
    if cores <= 1:
        with torch.inference_mode():
            work(0, count)
        return
    share = -(-count // cores)
    starts = range(0, count, share)

    def alone(start: int) -> None:
        with torch.inference_mode():
            work(start, min(start + share, count))

    list(_workers(torch.get_num_threads()).map(alone, starts))


@cache
def _workers(count: int) -> ThreadPoolExecutor:
    """Threads whose operations stay on their own core."""
    pool = ThreadPoolExecutor(count, thread_name_prefix="frevl-core")
    all_here = threading.Barrier(count)

    def settle() -> None:
        all_here.wait()  # or one thread could take two of these calls
        torch.get_num_threads()  # a thread takes the number of all threads at first use, whatever was set before
        torch.set_num_threads(1)

    for done in [pool.submit(settle) for _ in range(count)]:
        done.result()
    # The call sets its own thread's number, which is meant, and that of threads yet to come, which is not.
    torch.set_num_threads(count)
    return pool


os.register_at_fork(after_in_child=_workers.cache_clear)  # threads do not live on in a forked process
