"""Settings of the interpreter and the C library for a server, and the check for several worker processes."""

import asyncio
import ctypes
import gc
import multiprocessing
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
# At the end of each arena: the main one, which bodies come from, is trimmed every TRIM_SECONDS, those of threads never.
KEPT_BYTES = 4 << 20
TRIM_SECONDS = 5.0


def spare_the_collector() -> None:
    """Exclude objects that live as long as the process from garbage collection, and collect less often.

    Under load a full collection would stop the process for 100 ms every two seconds.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def give_memory_back() -> None:
    """Have glibc return large blocks to the system as soon as they are free; elsewhere it does nothing.

    By default glibc keeps blocks of the size of the first large picture for later ones. Up to KEPT_BYTES of smaller
    blocks stay: to get them anew from the system takes half a millisecond of a photo's request.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(M_MMAP_THRESHOLD, 1 << 20)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


async def keep_giving_memory_back() -> None:
    """Return free memory to the system every TRIM_SECONDS, where the C library is glibc. It ends when it is cancelled.

    After a burst of requests free blocks lie between used ones, and glibc keeps most of them: 60 MB were measured.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    while trim:
        await asyncio.sleep(TRIM_SECONDS)
        await asyncio.to_thread(trim, 0)


class SeveralProcesses(RuntimeError):
    """This process was, or would be, one of several that share a port."""

    def __init__(self) -> None:
        super().__init__(
            "several worker processes of uvicorn would count metrics and hold limits each for itself: "
            "run one (--workers 1, WEB_CONCURRENCY unset), and set WORKERS for `python -m app serve`"
        )


def refuse_several_processes() -> None:
    """Raises SeveralProcesses. uvicorn's --workers start children; WEB_CONCURRENCY is what it and gunicorn read."""
    workers = os.environ.get("WEB_CONCURRENCY", "1")
    child = multiprocessing.parent_process() is not None and "--reload" not in sys.argv
    if child or (workers.isdecimal() and int(workers) > 1):
        raise SeveralProcesses
