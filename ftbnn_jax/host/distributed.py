"""Joining the processes of a run: one a host on Cloud TPU, one a GPU under SLURM, or any, by address."""

import contextlib
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import NoReturn, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from ftbnn_jax import command, report
from ftbnn_jax.errors import UserError, summary
from ftbnn_jax.host import machine

T = TypeVar("T")

# A process that has not been heard of for so long is lost, and ends the others.
_HEARTBEAT_TIMEOUT_S = 30


def initialize(how: str, num_processes: int | None = None, process_id: int | None = None) -> None:
    """Joins this process to the others of the run, before any other use of JAX.

    Only process 0 prints to standard output from here on.

    Args:
      how: "off"; "tpu" or "slurm", where the environment says the rest; "auto", which is "slurm" in a
        SLURM step of several tasks and else "off"; or process 0's "HOST:PORT".
      num_processes: for HOST:PORT, how many there are.
      process_id: for HOST:PORT, which one this is, from 0.

    Raises:
      UserError: `how` is none of these, a number is missing or unfitting, or the others did not come.
    """
    if how == "auto":
        how = "slurm" if machine.environment_number("SLURM_STEP_NUM_TASKS", 1) > 1 else "off"
    by_address = re.fullmatch(r"[^:]+:\d+", how) is not None
    if how not in ("off", "tpu", "slurm") and not by_address:
        raise UserError(f"--distributed={how}: must be auto, off, tpu, slurm, or process 0's HOST:PORT")
    for name, value in (("num_processes", num_processes), ("process_id", process_id)):
        if by_address and value is None:
            raise UserError(f"--{name}: must be given with --distributed={how}")
        if not by_address and value is not None:
            raise UserError(f"--{name}={value}: goes with --distributed=HOST:PORT only")
    if by_address and not 0 <= process_id < num_processes:
        raise UserError(f"--process_id={process_id}: must be in 0 to {num_processes - 1}")
    if how == "off":
        return
    try:
        jax.distributed.initialize(
            coordinator_address=how if by_address else None,
            num_processes=num_processes,
            process_id=process_id,
            # By address, a process has all devices of its machine.
            cluster_detection_method={"slurm": "slurm"}.get(how, "deactivate" if by_address else None),
            heartbeat_timeout_seconds=_HEARTBEAT_TIMEOUT_S,
        )
    except KeyError as error:
        raise UserError(f"--distributed={how}: {error} is not in the environment") from error
    except (ValueError, RuntimeError) as error:
        raise UserError(f"--distributed={how}: {summary(error)}") from error
    if jax.process_index():
        report.console.quiet = True


def is_main() -> bool:
    """Whether this process writes the run's files and prints."""
    return jax.process_index() == 0


def from_main(value: bool) -> bool:
    """Returns the value that process 0 has; called by all of them."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.broadcast_one_to_all(np.asarray(value)))


def on_main(action: Callable[[], T]) -> T | None:
    """Does something in process 0 alone; called by all of them.

    Returns:
      What `action` returned; None in the other processes.

    Raises:
      UserError: `action` raised it; raised in all processes.
    """
    found, error = None, None
    if is_main():
        try:
            found = action()
        except UserError as raised:
            error = raised
    if from_main(error is not None):
        raise error or UserError("process 0 cannot go on; it says why")
    return found


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Around the work of one of several processes: an error of one ends all, with one line.

    A process that fails leaves without the usual farewell, for which it would wait for others that wait
    for it; the others notice, and leave as well.
    """
    if jax.process_count() == 1:
        yield
        return
    try:
        yield
    except UserError as error:
        _leave(f"error: {error}", command.MISTAKE)
    except jax.errors.JaxRuntimeError as error:
        summary = str(error).strip().splitlines()[0][:200]
        _leave(
            "error: a computation over all processes failed; most likely one of them was lost "
            f"({summary}); the same command in all of them goes on from the newest checkpoint",
            command.UNFINISHED,
        )
    except Exception:
        _leave(traceback.format_exc(), 1)


def _leave(message: str, status: int) -> NoReturn:
    print(f"process {jax.process_index()}: {message}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(status)
