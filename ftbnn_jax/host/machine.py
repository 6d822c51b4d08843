"""The machine that the process runs on: cores, devices, how its C library hands out memory."""

import ctypes
import functools
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Callable
from typing import TypeVar

from ftbnn_jax.errors import UserError, summary
from ftbnn_jax.host import paths

# Size of the cache of compiled programs; a network's training step takes some 10 MB.
_CACHE_BYTES = 2 * 2**30

# What JAX has by default, and what this package is written for.
_SETTINGS = {
    "jax_enable_x64": False,
    "jax_disable_jit": False,
    "jax_numpy_dtype_promotion": "standard",
    "jax_numpy_rank_promotion": "allow",
}
_CHOOSE_DEVICES = ("JAX_PLATFORMS", "JAX_NUM_CPU_DEVICES", "XLA_FLAGS")

_T = TypeVar("_T")


def num_cores() -> int:
    """Returns how many cores this process may use; JAX takes as many threads."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int:
    """Returns the memory that this process may fill: the machine's, or its control group's if less."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        # It says "max" where there is no limit.
        limit = int(pathlib.Path("/sys/fs/cgroup/memory.max").read_text())
    except (OSError, ValueError):
        return physical
    return min(physical, limit)


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


def environment_number(name: str, default: int, least: int = 1) -> int:
    """Returns a whole number from the environment.

    Raises:
      UserError: the variable is something else.
    """
    text = os.environ.get(name) or str(default)
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) < least:
        raise UserError(f"{name}={text}: must be a whole number of at least {least}")
    return int(text)


def in_32_bits(function: Callable[..., _T]) -> Callable[..., _T]:
    """Has a function compute in 32 bits, whatever JAX defaults to in the program around it."""

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        import jax

        with jax.enable_x64(False):
            return function(*args, **kwargs)

    return wrapped


def start_jax(platforms: str = "") -> None:
    """Sets JAX up for a command and starts its devices; arguments and errors are `configure_jax`'s."""
    configure_jax(platforms)
    check_devices()


def configure_jax(platforms: str = "", keep_programs: bool = False) -> None:
    """Sets JAX up for a command, before its devices are started.

    What is computed has types and shapes of its own: variables like JAX_ENABLE_X64 change nothing.

    Args:
      platforms: devices to use where JAX_PLATFORMS does not say; "" for JAX's choice.
      keep_programs: keep what is compiled in the user's cache, for the next start.
        JAX_COMPILATION_CACHE_DIR names another place, JAX_ENABLE_COMPILATION_CACHE=false turns it off.

    Raises:
      UserError: XLA_FLAGS holds a flag that XLA does not take, or the cache named cannot be written.
    """
    _check_xla_flags(os.environ.get("XLA_FLAGS", "").strip())
    import jax

    for name, value in _SETTINGS.items():
        jax.config.update(name, value)
    if platforms and not os.environ.get("JAX_PLATFORMS"):
        jax.config.update("jax_platforms", platforms)
    cache = jax.config.jax_compilation_cache_dir
    if cache is None:
        if keep_programs and (cache := _default_cache()) is not None:
            jax.config.update("jax_compilation_cache_dir", cache)
            jax.config.update("jax_compilation_cache_max_size", _CACHE_BYTES)
    else:
        try:
            cache = paths.expand(cache)
            if not paths.is_remote(cache):
                jax.config.update("jax_compilation_cache_dir", _writable(cache))
        except (OSError, UserError) as error:
            raise UserError(
                f"JAX_COMPILATION_CACHE_DIR={cache}: must be a directory that can be written "
                f"({summary(error)})"
            ) from error


def check_devices() -> None:
    """Starts JAX's devices.

    Raises:
      UserError: one that JAX_PLATFORMS names is not there.
    """
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        # JAX asserts that a device is there where it knows the kind, and has not found any.
        given = [f"{name}={os.environ[name]}" for name in _CHOOSE_DEVICES if os.environ.get(name)]
        reason = re.split(r" \((?:set JAX|you may need)", summary(error))[0]
        raise UserError(
            f"{', '.join(given) or 'JAX_PLATFORMS='}: no such device here ({reason}); JAX_PLATFORMS=cpu "
            "alone would do, and none of these leaves the choice to JAX"
        ) from error


def _default_cache() -> str | None:
    """Returns the directory for compiled programs; None where it cannot be written, unasked for."""
    try:
        cache = paths.expand(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
        return _writable(os.path.join(cache, "ftbnn_jax"))
    except (OSError, UserError):
        return None


def _writable(directory: str) -> str:
    """Returns a directory, made if need be; raises an OSError where it cannot be written."""
    os.makedirs(directory, exist_ok=True)
    if not os.access(directory, os.W_OK | os.X_OK):
        raise PermissionError(f"{directory} cannot be written")
    return directory


@functools.cache
def _check_xla_flags(flags: str) -> None:
    """Has another process read XLA_FLAGS, since XLA ends the process that finds a mistake there."""
    if not flags:
        return
    read = [sys.executable, "-c", "from jaxlib import _jax; _jax.CompileOptions()"]
    # TensorFlow is told to be silent by the same variable, and the reason is what is asked for.
    loud = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "0"}
    result = subprocess.run(
        read, env=loud, capture_output=True, text=True, errors="replace", check=False
    )
    if result.returncode:
        # "F0000 00:00:00.000000 1 file.cc:1] Unknown flag in XLA_FLAGS: --name"
        reasons = [line.partition("] ")[2] for line in result.stderr.splitlines() if "] " in line]
        reason = reasons[0] if reasons else f"exit status {result.returncode}"
        raise UserError(f"XLA_FLAGS={flags}: XLA does not take it: {reason}")
