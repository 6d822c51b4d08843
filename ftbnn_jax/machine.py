"""The machine that the process runs on: its cores, and how its C library hands out memory."""

import ctypes
import os


def num_cores() -> int:
    """Returns how many cores this process may use; JAX takes as many threads."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_memory() -> None:
    """Keeps glibc from returning large buffers to the system each time they are freed.

    It would fetch them back page by page for the next ones, which takes longer than resizing an image
    or than a packed layer. A batch of images is larger than the largest buffer that glibc can be told
    not to fetch by itself, hence none may be; and the pool of a thread is returned once it is empty,
    hence threads share pools.

    For the start of a command: threads that are there already go on as before. The same as
    `MALLOC_TRIM_THRESHOLD_`, `MALLOC_MMAP_MAX_` and `MALLOC_ARENA_MAX` in the environment; nothing
    happens where the C library is another one.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    trim_threshold, mmap_max, arena_max = -1, -4, -8
    mallopt(trim_threshold, 1_000_000_000)
    mallopt(mmap_max, 0)
    mallopt(arena_max, max(1, num_cores() // 2))
