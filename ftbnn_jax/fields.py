"""The type and the range of every field of a dataclass that a user fills in, checked in one place."""

import dataclasses
import math
import typing
from collections.abc import Mapping
from typing import Any

import numpy as np

from ftbnn_jax.errors import UserError

_KINDS = {int: "whole number", float: "float32 number"}
_LONGEST = 80


@dataclasses.dataclass(frozen=True)
class Range:
    """The finite numbers that a field can have, or that its tuple can hold.

    Attributes:
      least: the lower end.
      most: the upper one.
      without: the ends that are not among them.
      longest: how many numbers a tuple can hold.
      shortest: how many it holds at least.
    """

    least: float = -math.inf
    most: float = math.inf
    without: tuple[float, ...] = ()
    longest: int = 1
    shortest: int = 1

    def holds(self, value: float) -> bool:
        """Whether a number is one of these."""
        finite = -math.inf < value < math.inf
        return finite and self.least <= value <= self.most and value not in self.without

    def __str__(self) -> str:
        if self.without and self.most < math.inf:
            left, right = "(" if self.least in self.without else "[", ")"
            return f"in {left}{self.least}, {self.most}{right}"
        if self.least == -math.inf:
            return "finite"
        lower = "positive" if self.least in self.without else f"at least {self.least}"
        return lower + (f" and at most {self.most}" if self.most < math.inf else "")


POSITIVE = Range(0, without=(0,))
NOT_NEGATIVE = Range(0)
SHARE = Range(0, 1, without=(1,))


def check(prefix: str, values: Any, allowed: Mapping[str, Range | tuple[str, ...]]) -> None:
    """Checks the strings, numbers and tuples of a frozen dataclass; makes whole numbers real where due.

    Args:
      prefix: of the fields' names in messages, "config.".
      values: the dataclass. The annotations of its fields say the types; other ones are passed over.
      allowed: by name, the range of each number and tuple, and the choices of a string that has some and
        of a tuple of strings.

    Raises:
      UserError: a field has another type, or a value that is not allowed.
    """
    for field in dataclasses.fields(values):
        kind, value = field.type, getattr(values, field.name)
        rule, problem = allowed.get(field.name), ""
        if kind is str or kind is bool:
            if isinstance(rule, tuple) and value not in rule:
                problem = f"one of {', '.join(rule)}"
            elif not isinstance(value, kind):
                problem = "text" if kind is str else "one of True, False"
        elif kind in _KINDS:
            value = _number(kind, value, rule)
            problem = "" if value is not None else f"a {_KINDS[kind]}, {rule}"
        elif kind == tuple[str, ...]:
            if type(value) is not tuple or any(v not in rule or value.count(v) > 1 for v in value):
                problem = f"a tuple of some of {', '.join(rule)}, each once"
        elif typing.get_origin(kind) is tuple:
            element = typing.get_args(kind)[0]
            numbers = tuple(_number(element, v, rule) for v in value) if type(value) is tuple else ()
            fits = type(value) is tuple and rule.shortest <= len(numbers) <= rule.longest
            if None in numbers or not fits:
                lengths = f"{rule.shortest} to {rule.longest}"
                problem = f"a tuple of {lengths} {_KINDS[element]}s, each {rule}"
            value = numbers
        if problem:
            found = shown(getattr(values, field.name))
            raise UserError(f"must be {problem}", f"{prefix}{field.name}={found}")
        object.__setattr__(values, field.name, value)


def _number(kind: type, value: object, allowed: Range) -> float | None:
    """Returns an allowed number of a kind; None for everything else."""
    # A bool is an int in Python, and `width=True` is a mistake all the same.
    if isinstance(value, bool) or not isinstance(value, int if kind is int else int | float):
        return None
    if kind is int:
        return value if allowed.holds(value) else None
    # What is computed with is a float32, which holds fewer numbers: 1e-50 is 0, and 1e39 infinite.
    try:
        with np.errstate(over="ignore"):
            return float(value) if allowed.holds(float(np.float32(value))) else None
    except OverflowError:
        return None


def shown(value: object) -> str:
    """Returns a value as it is written in Python, in one line, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python does not write out the longest of numbers.
        return "(a number of very many digits)"
    except RecursionError:
        return "(a value of very many levels)"
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
