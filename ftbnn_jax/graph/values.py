"""What can be said of an array of the traced program without running it.

Each primitive's rule maps what is known of its operands to what is known of its results. From this
follows which convolutions are binary (both operands hold signs), and which of them read the output of
a ReLU (their signs cannot be -1).
"""

import dataclasses
import itertools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Longer lists of possible numbers are of no use: the question is whether they are -1, 0 and 1.
_MAX_NUMBERS = 8

# A larger constant is a table or a mask, and not worth a look at every element.
_MAX_ELEMENTS = 4096

_SIGNS = frozenset({-1.0, 0.0, 1.0})


def words(text: str) -> frozenset[str]:
    """Returns the words of `text`."""
    return frozenset(text.split())


@dataclasses.dataclass(frozen=True)
class Value:
    """Knowledge of one array.

    Attributes:
      from_input: whether it depends on the network's input; otherwise it is the same for every image.
      parameters: indices of the parameters it is computed from; empty if it depends on the input.
      numbers: every number that an element can be, or None if there are too many to list. Booleans
        are 0 and 1.
      non_negative: whether no element can be below 0.
    """

    from_input: bool = False
    parameters: frozenset[int] = frozenset()
    numbers: frozenset[float] | None = None
    non_negative: bool = False

    @property
    def is_sign(self) -> bool:
        """Whether the elements are signs, and not all the same one."""
        return self.numbers is not None and self.numbers <= _SIGNS and len(self.numbers) > 1

    @property
    def is_relu_sign(self) -> bool:
        """Whether the signs are those of a ReLU's output: 0 and 1, but never -1 (Appendix B)."""
        return self.is_sign and -1.0 not in self.numbers


def constant(array: Any) -> Value:
    """Returns what is known of an array that stands in the program as such."""
    if jnp.issubdtype(getattr(array, "dtype", np.float32), jax.dtypes.extended):
        return Value()  # Random keys.
    array = np.asarray(array)
    real = np.isrealobj(array) and (jnp.issubdtype(array.dtype, jnp.number) or array.dtype == np.bool_)
    if not real or not 0 < array.size <= _MAX_ELEMENTS:
        return Value()
    unique = np.unique(array.astype(np.float64))
    numbers = frozenset(unique.tolist()) if len(unique) <= _MAX_NUMBERS else None
    return Value(numbers=numbers, non_negative=bool((unique >= 0).all()))


def join(values: Sequence[Value]) -> Value:
    """Returns what holds for an element that comes from one of `values`, it is not known which."""
    numbers = frozenset()
    for value in values:
        numbers = None if numbers is None or value.numbers is None else numbers | value.numbers
    return _combine(values, numbers, all(v.non_negative for v in values))


def apply_rule(
    primitive: str, params: dict[str, Any], operands: Sequence[Value], results: int
) -> list[Value]:
    """Returns what is known of the results of one primitive operation.

    Args:
      primitive: its name.
      params: its parameters in the program.
      operands: what is known of its operands.
      results: how many results it has.
    """
    if primitive in ONE_TO_ONE:
        return list(operands)
    if primitive in _SAME:
        value = _combine(operands, operands[0].numbers, operands[0].non_negative)
    elif primitive in _JOINS:
        value = join(operands)
    elif primitive == "select_n":
        value = _select(operands)
    elif primitive == "convert_element_type":
        value = _convert(operands[0], np.dtype(params["new_dtype"]).kind)
    elif primitive in _ARITHMETIC:
        value = _arithmetic(primitive, operands)
    else:
        value = _combine(operands, None, _is_non_negative(primitive, params, operands))
    return [value] * results


def _combine(operands: Sequence[Value], numbers: frozenset[float] | None, non_negative: bool) -> Value:
    from_input = any(v.from_input for v in operands)
    parameters = frozenset().union(*(v.parameters for v in operands))
    if numbers is not None:
        non_negative = all(n >= 0 for n in numbers)
        numbers = numbers if 0 < len(numbers) <= _MAX_NUMBERS else None
    return Value(from_input, frozenset() if from_input else parameters, numbers, non_negative)


# Operations whose n-th result is the n-th operand.
ONE_TO_ONE = words("optimization_barrier device_put name stop_gradient copy copy_p sharding_constraint")
# Operations whose elements are elements of the first operand.
_SAME = words(
    "reshape transpose squeeze expand_dims broadcast_in_dim slice dynamic_slice split rev "
    "reduce_precision reduce_max reduce_min reduce_window_max reduce_window_min gather tile"
)
# Operations whose elements are elements of any operand.
_JOINS = frozenset(["concatenate", "stack", "pad", "dynamic_update_slice"])

_ARITHMETIC: dict[str, Callable[..., float]] = {
    "add": operator.add,
    "add_any": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "max": max,
    "min": min,
    "neg": operator.neg,
    "abs": abs,
    "sign": lambda x: float(np.sign(x)),
    "square": lambda x: x * x,
    "gt": operator.gt,
    "lt": operator.lt,
    "ge": operator.ge,
    "le": operator.le,
    "eq": operator.eq,
    "ne": operator.ne,
}


def _select(operands: Sequence[Value]) -> Value:
    predicate, *cases = operands
    if predicate.numbers is not None and len(predicate.numbers) == 1:
        cases = [cases[int(next(iter(predicate.numbers)))]]
    value = join(cases)
    return _combine([predicate, *cases], value.numbers, value.non_negative)


def _convert(x: Value, kind: str) -> Value:
    if x.numbers is None:
        return _combine([x], frozenset({0.0, 1.0}) if kind == "b" else None, x.non_negative)
    cast = {"b": lambda n: float(n != 0), "i": lambda n: float(int(n)), "u": lambda n: float(int(n))}
    return _combine([x], frozenset(map(cast.get(kind, float), x.numbers)), x.non_negative)


def _arithmetic(primitive: str, operands: Sequence[Value]) -> Value:
    if all(v.numbers is not None for v in operands):
        function = _ARITHMETIC[primitive]
        tuples = itertools.product(*(v.numbers for v in operands))
        return _combine(operands, frozenset(float(function(*t)) for t in tuples), False)
    if primitive in ("gt", "lt", "ge", "le", "eq", "ne"):
        return _combine(operands, _compare(primitive, *operands), True)
    if primitive == "sign":
        numbers = frozenset({0.0, 1.0}) if operands[0].non_negative else _SIGNS
        return _combine(operands, numbers, False)
    return _combine(operands, None, _is_non_negative(primitive, {}, operands))


def _compare(primitive: str, a: Value, b: Value) -> frozenset[float]:
    """Results of a comparison in which 0 may lie between the two sides."""
    if primitive in ("gt", "le"):
        return _compare({"gt": "lt", "le": "ge"}[primitive], b, a)
    if primitive in ("lt", "ge"):
        if a.non_negative and b.numbers is not None and max(b.numbers) <= 0:
            return frozenset({0.0 if primitive == "lt" else 1.0})
        if b.non_negative and a.numbers is not None and max(a.numbers) < 0:
            return frozenset({1.0 if primitive == "lt" else 0.0})
    return frozenset({0.0, 1.0})


_ALWAYS_NON_NEGATIVE = words("abs square exp exp2 logistic sqrt rsqrt")
_IF_ALL_ARE = words(
    "add add_any mul div min rem reduce_sum reduce_prod reduce_window_sum cumsum cumprod cummax "
    "tanh floor ceil round log1p expm1 asinh atan erf cbrt conv_general_dilated dot_general"
)


def _is_non_negative(primitive: str, params: dict[str, Any], operands: Sequence[Value]) -> bool:
    if primitive in _ALWAYS_NON_NEGATIVE:
        return True
    if primitive == "max":
        return any(v.non_negative for v in operands)
    if primitive in _IF_ALL_ARE:
        return all(v.non_negative for v in operands)
    if primitive == "integer_pow":
        return params["y"] % 2 == 0 or operands[0].non_negative
    if primitive == "clamp":
        low, x, high = operands
        return high.non_negative and (low.non_negative or x.non_negative)
    return False
