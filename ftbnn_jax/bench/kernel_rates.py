"""From what the loops of some C programs take to the time of each unit of `costs.UNITS`."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.optimize

from ftbnn_jax.deploy.c import costs, device, profile
from ftbnn_jax.deploy.c.schedule import Network
from ftbnn_jax.errors import UserError

# As many channels as some device computes together.
_LANES = (1, 4, 8, 16)
# Loops that take less than this share of a network's average loop count less.
_SHORT = 0.1


class Times(NamedTuple):
    """What a network's program takes, in nanoseconds or instructions.

    Attributes:
      name: of the network.
      arithmetic: as `device.arithmetic_of` calls it.
      network: its loops.
      loops: the time of each.
      products: of each binary product by itself; empty where that is not known.
    """

    name: str
    arithmetic: str
    network: Network
    loops: tuple[float, ...]
    products: tuple[float, ...] = ()


def read(name: str, arithmetic: str, network: Network, printed: Mapping[str, Any]) -> Times:
    """Returns the times that `test_model --benchmark --json`, or the test of a Cortex-M, printed.

    Args:
      name: of the network.
      arithmetic: of its program.
      network: its loops.
      printed: the JSON object.

    Raises:
      UserError: that is of no such network, or has no profile.
    """
    expected = [(d.layer, d.parts) for d in profile.describe(network)]
    try:
        loops = [((loop["layer"], loop["parts"]), _time(loop)) for loop in printed["loops"]]
        products = [(product["name"], float(product["ns"])) for product in printed.get("products", ())]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            "no output of `test_model --benchmark --json`, built with -DFTBNN_PROFILE", name
        ) from error
    known = products == [] or [name for name, _ in products] == [p.name for p in network.products]
    if [loop for loop, _ in loops] != expected or not known:
        raise UserError("the times are of another network, or of another version of this program", name)
    times = [[time for _, time in found] for found in (loops, products)]
    if not all(0 <= time < math.inf for found in times for time in found):
        raise UserError("a time is negative, or no number", name)
    return Times(name, arithmetic, network, *map(tuple, times))


def _time(loop: Mapping[str, Any]) -> float:
    """Returns nanoseconds, or what the test on a microcontroller counts."""
    return float(loop["ns"] if "ns" in loop else loop["instructions"])


def fit(
    times: Sequence[Times],
) -> tuple[int, dict[str, dict[str, float]], tuple[device.Checked, ...]]:
    """Finds the rates, none below 0, that are nearest to all times, each relative to its size.

    Returns:
      How many lanes fit best; the rates by arithmetic; and how far they are from each network.
    """
    arithmetics = list(dict.fromkeys(time.arithmetic for time in times))

    def fitted(lanes):
        found = {a: _fit([time for time in times if time.arithmetic == a], lanes) for a in arithmetics}
        return sum(rest for _, rest in found.values()), lanes, found

    _, lanes, found = min(map(fitted, _LANES), key=lambda one: one[0])
    rates = {arithmetic: rates for arithmetic, (rates, _) in found.items()}
    checked = tuple(
        device.Checked(
            time.name,
            time.arithmetic,
            round(sum(time.loops), 1),
            round(sum(estimated(time.network, rates[time.arithmetic], lanes)), 1),
        )
        for time in times
    )
    return lanes, rates, checked


def line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Returns what is there of any, and what each adds, (0, 0) where nothing is known."""
    if len({x for x, _ in points}) < 2:
        return (0.0, 0.0)
    each, base = np.polyfit(*np.asarray(points, float).T, 1)
    return (round(float(base), 1), round(float(each), 1))


def estimated(network: Network, rates: Mapping[str, float], lanes: int) -> list[float]:
    """Returns what each loop of a network takes by some rates."""
    return [costs.time(costs.count(network, loop, lanes), rates) for loop in network.loops]


def _fit(times: Sequence[Times], lanes: int) -> tuple[dict[str, float], float]:
    """Returns the rates of one arithmetic, and the sum of the squares of what they are off."""
    rows, targets = [], []
    for time in times:
        counted = [costs.count(time.network, loop, lanes) for loop in time.network.loops]
        counted += [costs.of_product(p, lanes) for p in time.network.products[: len(time.products)]]
        took = np.asarray((*time.loops, *time.products))
        scale = took + _SHORT * np.mean(time.loops) + np.finfo(float).tiny
        rows += [
            [counts.get(unit, 0) / s for unit in costs.UNITS]
            for counts, s in zip(counted, scale, strict=True)
        ]
        targets += list(took / scale)
    matrix = np.asarray(rows)
    # The columns are made of one size: units come in very different numbers.
    columns = np.maximum(matrix.max(0), np.finfo(float).tiny)
    solution, rest = scipy.optimize.nnls(matrix / columns, np.asarray(targets))
    rates = dict(zip(costs.UNITS, solution / columns, strict=True))
    return {unit: float(f"{rate:.4g}") for unit, rate in rates.items() if rate}, rest**2
