"""The machine that the process runs on: its cores, and how its C library hands out memory."""

import ctypes
import os


def num_cores() -> int:
    """Returns how many cores this process may use; JAX takes as many threads."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_memory() -> None:
    """Keeps glibc from returning large buffers to the system each time they are freed.

    It would fetch them back page by page for the next ones, which takes longer than resizing an image or
    than a packed layer.
    The same as `MALLOC_TRIM_THRESHOLD_` and `MALLOC_MMAP_THRESHOLD_` in the environment; nothing happens
    where the C library is another one.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    trim_threshold, mmap_threshold = -1, -3
    mallopt(trim_threshold, 1_000_000_000)
    mallopt(mmap_threshold, 32 * 2**20)  # The most that glibc takes.
