"""The stopwatch of the benchmarks.

What is compared takes turns in one run, so that a busy machine hurts all alike, and medians count.
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

_LEAST_ROUNDS = 3


def medians(
    calls: Sequence[Callable[[], Any]], rounds: int, turn_ms: float = 0.0, longest_s: float = math.inf
) -> list[float]:
    """Times calls in turn and returns the median time of one call of each, in ms.

    In a turn a call runs as often as fits into `turn_ms`, at least once, and counts with the mean: what
    it reads is then in the cache as it is in a network, where the layer before has just written it. A
    first call of each, which may compile, does not count.

    Args:
      calls: functions whose results are waited for.
      rounds: turns of each.
      turn_ms: length of a turn, in ms; 0 for one call.
      longest_s: seconds after which no round begins, once there were three.
    """
    repeats = [_repeats(call, turn_ms) for call in calls]
    times: list[list[float]] = [[] for _ in calls]
    end = time.perf_counter() + longest_s
    for finished in range(rounds):
        if finished >= _LEAST_ROUNDS and time.perf_counter() > end:
            break
        for call, repeat, taken in zip(calls, repeats, times, strict=True):
            taken.append(_run(call, repeat) / repeat)
    return [float(np.median(taken)) for taken in times]


def _repeats(call: Callable[[], Any], turn_ms: float) -> int:
    """Returns how many calls make a turn, after one that does not count."""
    _run(call, 1)
    return max(1, round(turn_ms / _run(call, 1))) if turn_ms else 1


def _run(call: Callable[[], Any], times: int) -> float:
    """Returns the time of so many calls one after the other, in ms."""
    start = time.perf_counter()
    for _ in range(times):
        jax.block_until_ready(call())
    return 1e3 * (time.perf_counter() - start)
